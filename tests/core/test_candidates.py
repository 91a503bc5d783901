"""Candidates: by hand, the sampler's own law, what is never a candidate, bad input."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from lenvm_rl.core import select_candidates

INF = math.inf
LOGITS = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]]).log()


def select(logits=LOGITS, *, temperature=1.0, max_candidates=5, **limits):
    rows = logits.shape[0]
    tensors = {name: torch.full((rows,), x) for name, x in limits.items()}
    return select_candidates(
        logits,
        temperature=torch.full((rows,), temperature),
        max_candidates=max_candidates,
        **tensors,
    )


def chosen(result):
    """The first row as {token: probability}."""
    ids, log_probs, mask = (x[0] for x in result)
    assert (log_probs[~mask] == -INF).all()
    return dict(zip(ids[mask].tolist(), log_probs[mask].exp().tolist(), strict=True))


def test_by_hand():
    assert list(chosen(select())) == [1, 3, 4, 0, 2]
    assert chosen(select(top_k=2)) == pytest.approx({1: 0.4 / 0.65, 3: 0.25 / 0.65})
    assert chosen(select(max_candidates=2)) == chosen(select(top_k=2))
    assert list(chosen(select(top_p=0.6))) == [1, 3]  # 0.4 < 0.6 <= 0.65
    assert list(chosen(select(min_p=0.45))) == [1, 3, 4]  # at least 0.45 of 0.4
    # top-p counts mass among the top k: 0.4 / 0.65 >= 0.6
    assert list(chosen(select(top_k=2, top_p=0.6))) == [1]
    # temperature 1/2 squares the probabilities
    assert chosen(select(top_k=2, temperature=0.5))[1] == pytest.approx(0.16 / (0.16 + 0.0625))
    assert chosen(select(temperature=0.0)) == chosen(select())


@given(
    st.integers(0, 2**32),
    st.sampled_from([0, 1, 3, 17, 40]),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
)
def test_the_same_law_as_the_sampler(seed, top_k, top_p, min_p, temperature):
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(seed)) * 3
    limits = {
        "temperature": torch.full((4,), temperature),
        "top_k": torch.full((4,), top_k),
        "top_p": torch.full((4,), top_p),
        "min_p": torch.full((4,), min_p),
    }
    ids, log_probs, mask = select_candidates(logits, max_candidates=40, **limits)
    pytest.importorskip("transformers", reason="lenvm_rl.model needs it")
    from lenvm_rl.sampling.transformers.token_sampling import sampling_logprobs

    expected = sampling_logprobs(logits, **limits)
    assert_close(torch.full_like(logits, -INF).scatter(1, ids, log_probs), expected)
    assert torch.equal(mask.sum(1), (expected > -INF).sum(1))


def test_top_p_counts_tokens_beyond_the_width():
    """Without top-k the nucleus is of the whole vocabulary, then cut to the width."""
    logits = torch.zeros(1, 100)
    assert len(chosen(select(logits, max_candidates=10, top_p=0.045))) == 5
    assert len(chosen(select(logits, max_candidates=10, top_p=0.5))) == 10


def test_ties_come_by_id():
    logits = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, 0.0]])
    assert select(logits, max_candidates=6)[0].tolist() == [[1, 3, 4, 0, 2, 5]]


@given(
    st.integers(0, 2**32), st.sampled_from([1, 3, 20, 40]), st.sampled_from([4096, 5003, 20_011])
)
def test_long_rows_are_searched_as_short_ones(seed, k, size):
    """Against a sort of the whole row; rounding makes many ties, also at the last place."""
    rng = torch.Generator().manual_seed(seed)
    logits = (torch.randn(3, size, generator=rng) * 5).round() / 2
    logits[1, : size // 2] = -INF
    logits[2, torch.randperm(size, generator=rng)[k:]] = -INF  # k tokens are possible
    ids, log_probs, mask = select_candidates(logits, max_candidates=k)
    expected, order = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(logits.gather(1, ids), expected[:, :k])
    assert mask.all() and all(len(set(row)) == k for row in ids.tolist())
    inner = expected[:, :k] > expected[:, k - 1 : k]  # above the last place: by score, then by id
    assert torch.equal(ids[inner], order[:, :k][inner])
    assert_close(log_probs, torch.log_softmax(expected[:, :k], -1))


def test_impossible_tokens_are_no_candidates():
    logits = LOGITS.clone()
    logits[0, [1, 4]] = -INF
    assert list(chosen(select(logits))) == [3, 0, 2]
    only_one = torch.full((1, 5), -INF)
    only_one[0, 2] = -7.0
    assert chosen(select(only_one, top_p=0.5, min_p=0.5)) == {2: 1.0}


def test_forbidden_eos():
    logits = LOGITS.repeat(3, 1)
    logits[2, [0, 2, 4]] = -INF  # nothing but EOS is left
    ids, log_probs, mask = select_candidates(
        logits,
        temperature=torch.ones(3),
        max_candidates=5,
        forbidden=torch.tensor([False, True, True]),
        eos_ids=torch.tensor([1, 3]),
    )
    kept = [set(i[m].tolist()) for i, m in zip(ids, mask, strict=True)]
    assert kept == [{0, 1, 2, 3, 4}, {0, 2, 4}, {1, 3}]
    assert_close(log_probs.exp().sum(1), torch.ones(3))


def test_what_ends_a_row_is_its_own():
    ids, _, mask = select_candidates(
        LOGITS.repeat(3, 1),
        max_candidates=5,
        forbidden=torch.tensor([True, True, False]),
        eos_ids=torch.tensor([[1, 3], [0, 0], [-1, -1]]),
    )
    kept = [set(i[m].tolist()) for i, m in zip(ids, mask, strict=True)]
    assert kept == [{0, 2, 4}, {1, 2, 3, 4}, {0, 1, 2, 3, 4}]


def test_forbidding_comes_before_truncation():
    """EOS takes no place among the k most probable where it may not be chosen."""
    ids, _, mask = select_candidates(
        LOGITS,
        temperature=torch.ones(1),
        max_candidates=2,
        forbidden=torch.tensor([True]),
        eos_ids=torch.tensor([1]),
    )
    assert ids[mask].tolist() == [3, 4]


@given(st.integers(0, 2**32))
def test_rows_do_not_influence_each_other(seed):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 30, generator=rng)
    limits = {
        "temperature": torch.rand(5, generator=rng) * 2,
        "top_k": torch.randint(0, 12, (5,), generator=rng),
        "top_p": torch.rand(5, generator=rng).clamp(min=0.05),
        "min_p": torch.rand(5, generator=rng),
    }
    ids, log_probs, mask = select_candidates(logits, max_candidates=10, **limits)
    for row in range(5):
        own = {name: x[row : row + 1] for name, x in limits.items()}
        i, p, m = select_candidates(logits[row : row + 1], max_candidates=10, **own)
        assert torch.equal(i[m], ids[row][mask[row]])
        assert_close(p[m], log_probs[row][mask[row]], rtol=0, atol=1e-6)


def test_half_precision_logits():
    ids, log_probs, _ = select(LOGITS.bfloat16())
    assert log_probs.dtype == torch.float32
    assert ids[0, 0] == 1


def test_bad_input():
    with pytest.raises(ValueError, match=r"logits must have shape \[R, V\]"):
        select(torch.zeros(5, 1)[0])
    with pytest.raises(ValueError, match="max_candidates must be at least 1, got 0"):
        select(max_candidates=0)
    with pytest.raises(ValueError, match="give eos_ids"):
        select(forbidden=True)
