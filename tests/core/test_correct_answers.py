"""The length term in correct answers alone: zero in expectation, in a unit of its own, bounded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lenvm_rl.core import (
    centre_correct,
    clamp_to_lead,
    combine,
    correct_term,
    discounted_returns,
    lead_over_wrong,
    length_advantage,
)


def masks(lengths, width=None):
    return torch.arange(width or max(lengths))[None] < torch.tensor(lengths)[:, None]


@st.composite
def batches(draw):
    """Lengths, masks with gaps, scores, groups, and a generator for what is in the cells."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=10))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = torch.zeros(len(lengths), 12, dtype=torch.long)
    for row, length in zip(mask, lengths, strict=True):
        row[torch.randperm(12, generator=rng)[:length]] = 1
    scores = st.sampled_from([0.0, 0.0, 0.5, 1.0])
    correct = torch.tensor([draw(scores) for _ in lengths])
    groups = torch.tensor([draw(st.sampled_from([7, -1, 30])) for _ in lengths])
    return mask, correct, groups, rng


def test_centring_by_hand():
    x = torch.tensor([[1.0, 5.0, 0.0], [3.0, 9.0, 2.0], [8.0, 8.0, 8.0], [4.0, 0.0, 0.0]])
    mask = masks([2, 3, 3, 1])
    correct, groups = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1])
    got = centre_correct(x, mask, correct, groups)
    # Means of the two right rows: 2, 7, and 2 of the one that goes on; the last is alone.
    wanted = torch.tensor([[-1.0, -2.0, 0.0], [1.0, 2.0, 0.0], [0.0] * 3, [0.0] * 3])
    assert_close(got, wanted)


@given(batches())
def test_right_answers_of_a_group_sum_to_nothing_at_every_position(batch):
    mask, correct, groups, rng = batch
    x = torch.randn(mask.shape, generator=rng, dtype=torch.float64)
    got = centre_correct(x, mask, correct, groups)
    place = (mask.cumsum(1) - 1) * mask
    for group in groups.unique():
        for t in range(mask.shape[1]):
            at = (mask != 0) & (place == t) & (groups == group)[:, None]
            assert (got * correct[:, None] * at).sum().item() == pytest.approx(0.0, abs=1e-9)
    assert not got[(mask == 0) | (correct == 0)[:, None]].any()


@given(batches())
def test_what_depends_on_group_and_position_alone_has_no_effect(batch):
    """So the values of a critic that knows no more than these are left out from the start."""
    mask, correct, groups, rng = batch
    x = torch.randn(mask.shape, generator=rng, dtype=torch.float64)
    _, number = groups.unique(return_inverse=True)
    table = torch.randn(3, mask.shape[1] + 1, generator=rng, dtype=torch.float64)
    same = table[number[:, None], mask.cumsum(1)]
    garbage = torch.where(mask != 0, x + same, float("nan"))
    assert_close(
        centre_correct(garbage, mask, correct, groups), centre_correct(x, mask, correct, groups)
    )


def test_a_right_answer_is_judged_among_right_answers_whatever_the_wrong_ones_are():
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    correct, groups = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.long)
    mask, other = masks([3, 5, 2, 4]), masks([3, 5, 5, 1])
    moved = x + torch.tensor([0.0, 0.0, 9.0, -9.0])[:, None]
    assert_close(
        centre_correct(x, mask, correct, groups)[:2],
        centre_correct(moved, other, correct, groups)[:2],
    )


def test_the_value_of_right_answers_leaves_nothing_in_expectation():
    """Two continuations from every state, one right and long, one right and short, one wrong.

    V_c averages over the right ones alone; E[A | s, right] = 0 at every lambda, and with the V
    of all answers it is not.
    """
    gamma, lengths, p = 0.9, (4, 8, 2), (0.5, 0.2, 0.3)  # decided by the first token
    mask, correct = masks(lengths), torch.tensor([1.0, 1.0, 0.0])
    returns = discounted_returns(mask, gamma=gamma).double()
    done, weight = torch.ones(3, dtype=torch.bool), torch.tensor(p).double()

    def values(rows):  # at s_0 a mean over `rows`; afterwards the length is certain
        first = (weight * rows * returns[:, 0]).sum() / (weight * rows).sum()
        return torch.cat([first.expand(3, 1), returns[:, 1:]], dim=1)

    for lam in (0.0, 0.6, 1.0):
        of_right = length_advantage(values(correct), mask, done, gamma=gamma, lam=lam)
        of_all = length_advantage(values(torch.ones(3)), mask, done, gamma=gamma, lam=lam)
        assert (weight * correct * of_right[:, 0]).sum().item() == pytest.approx(0.0, abs=1e-7)
        assert (weight * correct * of_all[:, 0]).sum().item() < -0.01


def test_the_unit_comes_from_the_rows_that_get_the_term():
    a = torch.tensor([[1.0, 3.0, 99.0], [50.0, -70.0, 80.0], [5.0, 7.0, -99.0]])
    mask, correct = masks([2, 3, 2]), torch.tensor([1.0, 0.0, 1.0])
    got = correct_term(a, mask, correct, how="batch_std")  # std of 1, 3, 5, 7 is sqrt(5)
    assert_close(got, torch.tensor([[1.0, 3.0, 0.0], [0.0] * 3, [5.0, 7.0, 0.0]]) / 5**0.5)
    noisy = a * torch.tensor([1.0, 1000.0, 1.0])[:, None]
    assert torch.equal(correct_term(noisy, mask, correct, how="batch_std"), got)
    half = correct_term(a, mask, correct * 0.5, how="batch_std")
    assert_close(half, got * 0.5)


def test_round_off_is_not_blown_up_to_a_unit():
    """Exact values of certain lengths leave 1e-8; its standard deviation is no unit."""
    mask = masks([200, 600])
    values = discounted_returns(mask, gamma=0.997)
    done = torch.ones(2, dtype=torch.bool)
    a = length_advantage(values, mask, done, gamma=0.997, lam=0.99)
    assert correct_term(a, mask, torch.ones(2), how="batch_std").abs().max() < 1e-5


def test_a_lead_by_hand():
    task = torch.tensor([[2.0, 2.0, 2.0], [-1.0, 0.0, 0.0], [-0.5, -0.5, 0.0], [1.0, 1.0, 1.0]])
    mask = masks([3, 1, 2, 3])
    correct, groups = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1])
    # Wrong ones: means -1 and -.5, sums -1 and -1, which is -1/3 a token over three tokens.
    got = lead_over_wrong(task, mask, correct, groups)
    assert_close(got[0].item(), 2.0 + 1.0 / 3.0)
    assert got[3].item() == float("inf")  # nobody to be above of


@given(batches(), st.floats(0.0, 1.0))
def test_every_right_answer_stays_above_the_wrong_ones_of_its_group(batch, share):
    """In the mean and in the sum over its tokens, however large the term; where it was above."""
    mask, correct, groups, rng = batch
    task = torch.randn(len(mask), 1, generator=rng, dtype=torch.float64) + 3.0 * correct[:, None]
    task = (task + 0.2 * torch.randn(mask.shape, generator=rng)) * mask
    term = 50.0 * torch.randn(mask.shape, generator=rng, dtype=torch.float64)
    term = term * mask * correct[:, None]
    bounded = clamp_to_lead(term, task, mask, correct, groups, share=share)
    total = combine(task, bounded, mask, scale=1.0)
    lead = lead_over_wrong(task, mask, correct, groups)
    length = mask.sum(1)
    leads = lead[(correct > 0) & lead.isfinite()]
    for i in range(len(mask)):
        wrong = (groups == groups[i]) & (correct == 0)
        if correct[i] == 0:
            assert torch.equal(total[i], task[i])
        elif not len(leads):
            assert torch.equal(bounded[i], term[i]), "nothing says what being right is worth"
        elif not wrong.any():
            assert bounded[i].abs().max() <= share * leads.mean() + 1e-9
        elif lead[i] > 0:
            sums, means = task[wrong].sum(1), task[wrong].sum(1) / length[wrong]
            margin = (1.0 - share) * lead[i] - 1e-9
            assert total[i].sum() >= sums.max() + margin * length[i]
            assert total[i].sum() / length[i] >= means.max() + margin
            assert bounded[i].abs().max() <= share * lead[i] + 1e-9
        else:
            assert torch.equal(total[i], task[i]), "what is behind already is not pushed further"


def test_a_term_within_the_bound_is_left_as_it_is():
    task = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    mask = torch.ones(2, 2)
    correct, groups = torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long)
    term = torch.tensor([[0.9, -0.9], [0.0, 0.0]])
    assert torch.equal(clamp_to_lead(term, task, mask, correct, groups, share=0.5), term)
    got = clamp_to_lead(10.0 * term, task, mask, correct, groups, share=0.5)
    assert_close(got, torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="share must be in"):
        clamp_to_lead(term, task, mask, correct, groups, share=1.5)
