"""The whole loop on a Markov policy with exact values: laws, bounds, bits, slots, bad input."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import MODES, guide, select_candidates
from lenvm_rl.guidance import GuidanceSettings, Guide, GuidedRow, History, PoolExhausted
from tests.guidance.toy import EOS, GAMMA, VOCAB, MarkovPolicy, ToyScorer, countdown, make_config

INF = math.inf
POLICY = MarkovPolicy()
OFF = GuidanceSettings()


def asks(mode, **numbers):
    return GuidanceSettings(mode=mode, **{"min_p": 0.0, **numbers})


def make_guide(slots=64, max_candidates=VOCAB, policy=POLICY):
    scorer = ToyScorer(policy, slots=slots)
    return Guide(scorer, eos_token_ids=[EOS], max_candidates=max_candidates), scorer


def make_rows(settings, output=(7, 4), *, temperature=1.0):
    return [
        GuidedRow(i, i, asked, History([3], list(output)), 1, temperature)
        for i, asked in enumerate(settings)
    ]


def logits_of(rows, policy=POLICY):
    return torch.stack([policy.logits[row.history.tail(0)[-1]] for row in rows])


def run(settings, *, policy=POLICY, prompt=5, limit=600):
    """Lengths without EOS of one response per settings, all in one batch; `limit` if unended."""
    steering = make_guide(policy=policy)[0]
    rng = torch.Generator().manual_seed(0)
    outputs: list[list[int]] = [[] for _ in settings]
    live = list(range(len(settings)))
    while live:
        rows = [
            GuidedRow(i, key, settings[key], History([prompt], outputs[key]), 1)
            for i, key in enumerate(live)
        ]
        logits = logits_of(rows, policy)
        steering.apply(logits, rows)
        tokens = torch.multinomial(logits.softmax(-1), 1, generator=rng)[:, 0].tolist()
        for key, token in zip(live, tokens, strict=True):
            outputs[key].append(token)
        for key in [k for k in live if outputs[k][-1] == EOS or len(outputs[k]) == limit]:
            steering.close(key)
            live.remove(key)
    return [len(output) - (output[-1] == EOS) for output in outputs]


# --- what is written -------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_softmax_of_what_is_written_is_the_guided_distribution(temperature):
    asked = [asks("tilt", beta=-6.0), asks("equal_soft", target=20), asks("at_most", target=9)]
    rows = make_rows(asked, temperature=temperature)
    logits = logits_of(rows)
    ids, log_probs, mask = select_candidates(
        logits,
        temperature=torch.full((3,), temperature),
        max_candidates=VOCAB,
        top_k=torch.tensor([20] * 3),
    )
    expected = guide(
        log_probs,
        POLICY.lengths.float()[ids],
        mask,
        ids == EOS,
        mode=torch.tensor([MODES.index(s.mode) for s in asked]),
        gamma=GAMMA,
        generated=2,
        target=torch.tensor([0, 20, 9]),
        beta=-6.0,
    ).log_probs
    make_guide()[0].apply(logits, rows)
    sampled = (logits / (temperature or 1.0)).softmax(-1)
    assert_close(sampled, torch.zeros(3, VOCAB).scatter(1, ids, expected.exp()), rtol=0, atol=1e-5)


def test_rows_that_are_not_steered_keep_their_bits():
    neutral = [
        OFF,
        asks("tilt", beta=0, top_k=2),
        asks("scale", scale=1, top_p=0.1),
        asks("at_least", target=2, extreme=True),  # reached
    ]
    rows = make_rows([*neutral, asks("equal", target=5)])
    logits = torch.cat([logits_of(rows), torch.randn(2, VOCAB)])  # two rows nobody speaks of
    before = logits.clone()
    make_guide()[0].apply(logits, rows)
    assert torch.equal(logits[:4], before[:4])
    assert torch.equal(logits[5:], before[5:])
    assert (logits[4] > -INF).sum() == 1


def test_rows_do_not_influence_each_other():
    asked = [
        asks("tilt", beta=-6.0, top_k=3),
        asks("at_least", target=50, top_p=0.8),
        asks("scale", scale=0.7, scale_of="length", min_p=0.1),
        asks("at_most", target=2),
        asks("equal", target=40, space="value"),
    ]
    together = logits_of(make_rows(asked))
    make_guide()[0].apply(together, make_rows(asked))
    for i, settings in enumerate(asked):
        alone = logits_of(make_rows([settings]))
        make_guide()[0].apply(alone, make_rows([settings]))
        assert_close(alone[0].exp(), together[i].exp(), rtol=0, atol=1e-7)


def test_order_of_rows_and_of_logits_are_free():
    asked = [asks("tilt", beta=-6.0), asks("tilt", beta=6.0)]
    rows = make_rows(asked)
    expected = logits_of(rows)
    make_guide()[0].apply(expected, rows)
    swapped = [GuidedRow(4 - 3 * r.index, r.key, r.settings, r.history, 1) for r in rows]
    logits = logits_of(rows)[[1, 1, 1, 0, 0]]
    make_guide()[0].apply(logits, swapped)
    assert_close(logits[4].exp(), expected[0].exp())
    assert_close(logits[1].exp(), expected[1].exp())


def test_what_is_kept_between_steps_changes_nothing():
    """Requests come, go, move, and grow; a guide that never saw the step before writes the same."""
    kept, rng = make_guide()[0], torch.Generator().manual_seed(3)
    asked = [
        asks("tilt", beta=-6.0),
        asks("at_most", target=4),
        asks("at_least", target=5, top_p=0.9),
        asks("equal", target=6, top_k=5),
        asks("scale", scale=0.5, min_entropy=0.9),
    ]
    outputs = [[7] for _ in asked]
    steps = [
        [0, 1],
        [0, 1],
        [1, 0],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
        [4, 2],
        [4, 2],
        [2],
        [3],
        [3],
    ]
    for keys in steps:
        places = torch.randperm(6, generator=rng)[: len(keys)].tolist()
        if keys in ([0, 1, 2, 3, 4], [4, 2]):
            places = list(range(len(keys)))  # the same rows in the next step
        rows = [
            GuidedRow(i, k, asked[k], History([3], outputs[k]), 1, 0.5 + k / 2)
            for i, k in zip(places, keys, strict=True)
        ]
        logits = torch.randn(6, VOCAB, generator=rng)
        fresh = logits.clone()
        kept.apply(logits, rows)
        make_guide()[0].apply(fresh, rows)
        assert torch.equal(logits, fresh)
        for key in keys:
            outputs[key].append(5)


def test_candidates_are_cut_to_the_width():
    rows = make_rows([asks("tilt", beta=-1, top_k=0), asks("tilt", beta=-1, top_k=3)])
    logits = logits_of(rows)
    make_guide(max_candidates=5)[0].apply(logits, rows)
    assert (logits > -INF).sum(1).tolist() == [5, 3]


# --- laws of the modes -----------------------------------------------------------------------


def test_at_most_ends_by_n():
    targets = [0, 1, 2, 5, 17, 40, 41, 42] * 4
    lengths = run([asks("at_most", target=n) for n in targets])
    assert all(length <= n for length, n in zip(lengths, targets, strict=True))
    counted = run([asks("at_most", target=n, count_eos=True) for n in targets])
    assert all(length + 1 <= max(n, 1) for length, n in zip(counted, targets, strict=True))


def test_at_least_never_ends_before_n():
    targets = [0, 1, 2, 5, 17, 40, 80] * 2
    for numbers in ({}, {"extreme": True}, {"max_beta": 0.1}, {"min_entropy": 1.0}):
        lengths = run([asks("at_least", target=n, **numbers) for n in targets])
        assert all(length >= n for length, n in zip(lengths, targets, strict=True))
        if "extreme" not in numbers:
            assert min(lengths) < 40  # reached, it ends as before


@pytest.mark.parametrize(("mode", "off_by"), [("equal", 2.0), ("equal_soft", 4.0)])
def test_equal_meets_the_target(mode, off_by):
    """Mean error in tokens. (Near the end the policy leaves only some lengths open.)"""
    policy, start = countdown(), 40
    targets = [n for n in (15, 25, 40, 60) for _ in range(8)]

    def error(settings):
        lengths = run(settings, policy=policy, prompt=start)
        return sum(abs(a - n) for a, n in zip(lengths, targets, strict=True)) / len(targets)

    guided = error([asks(mode, target=n, force_eos=True) for n in targets])
    assert guided <= off_by < 10 < error([OFF] * len(targets))


def test_tilt_and_scale_move_the_length_both_ways():
    def mean(settings):
        lengths = run([settings] * 32)
        return sum(lengths) / len(lengths)

    plain = mean(OFF)
    assert mean(asks("tilt", beta=-8)) < 0.7 * plain < plain < mean(asks("tilt", beta=8)) / 1.3
    assert mean(asks("scale", scale=0.8)) < 0.9 * plain
    assert mean(asks("scale", scale=1.1, scale_of="length")) > 1.1 * plain


def test_forced_end():
    rows = make_rows([asks("at_most", target=2), asks("at_most", target=2, force_eos=False)])
    logits = logits_of(rows)
    logits[:, EOS] = -9.0  # no candidate among the four most probable
    make_guide(max_candidates=4)[0].apply(logits, rows)
    assert (logits[0] > -INF).nonzero().tolist() == [[EOS]]
    shortest = (logits[1] > -INF).nonzero()
    assert shortest.numel() == 1 and shortest.item() != EOS


def test_a_grammar_is_stronger_than_a_forced_end():
    rows = make_rows([asks("at_most", target=1)])
    logits = logits_of(rows)
    logits[:, EOS] = -INF
    allowed = (logits[0] > -INF).clone()
    make_guide()[0].apply(logits, rows)
    left = (logits[0] > -INF).nonzero()
    assert left.numel() == 1 and allowed[left.item()]
    assert POLICY.lengths[left.item()] == POLICY.lengths[allowed].min()


# --- ends are the row's ------------------------------------------------------------------------


def ending_at(settings, *ends):
    """Rows after tokens 7 and 4, each with its own ends."""
    rows = make_rows(settings)
    return [replace(row, ends=frozenset(own)) for row, own in zip(rows, ends, strict=True)]


def test_each_row_ends_at_its_own_tokens():
    rows = ending_at([asks("at_most", target=2)] * 3, {EOS}, {6}, {8, 9})
    logits = logits_of(rows)
    logits[:, [EOS, 6, 8, 9]] = -9.0  # no candidates among the four most probable
    make_guide(max_candidates=4)[0].apply(logits, rows)
    assert [row.nonzero()[:, 0].tolist() for row in logits > -INF] == [[EOS], [6], [8, 9]]


def test_at_least_chooses_no_end_of_its_row_before_n():
    rows = ending_at([asks("at_least", target=50)] * 3, {EOS}, {6}, {8, 9, 99})
    logits = logits_of(rows)
    guided, scorer = make_guide()
    scorer.ends = frozenset()
    guided.apply(logits, rows)
    excluded = [row.isinf().nonzero()[:, 0].tolist() for row in logits]
    assert excluded == [[EOS], [6], [8, 9]], "an id of no token is no end"


def test_what_ends_a_row_counts_as_nothing_left():
    """All of equal's candidates are longer than one token: with one left, it takes the end."""
    rows = ending_at([asks("equal", target=2)] * 2, {EOS}, {6})
    logits = logits_of(rows)
    guided, scorer = make_guide()
    scorer.ends = frozenset()
    guided.apply(logits, rows)
    assert logits.argmax(1).tolist() == [EOS, 6]


def test_a_row_without_an_end_has_no_token_that_is_free():
    """EOS is valued like any other token, and a tilt to the short side does not fall for it."""
    [with_end, without] = ending_at([asks("tilt", beta=-60.0)] * 2, {EOS}, ())
    logits = logits_of([with_end, without])
    guided, scorer = make_guide()
    scorer.ends = frozenset()
    guided.apply(logits, [with_end, without])
    assert logits[0].softmax(-1)[EOS] > 0.999
    policy = MarkovPolicy()
    expected = torch.log_softmax(policy.logits[4] - 60.0 * (1 - torch.sigmoid(-scorer.z)), dim=-1)
    assert_close(logits[1].log_softmax(-1), expected, rtol=0, atol=1e-4)


def test_a_row_without_an_end_keeps_its_candidates_where_an_end_is_asked_for():
    rows = ending_at([asks("at_least", target=9), asks("at_most", target=2)], (), ())
    logits = logits_of(rows)
    guided, scorer = make_guide()
    scorer.ends = frozenset()
    guided.apply(logits, rows)
    assert (logits[0] > -INF).all() and (logits[1] > -INF).sum() == 1


@pytest.mark.parametrize("mode", ["equal", "equal_soft"])
def test_equal_takes_a_stop_token_of_its_own_at_n_and_not_before(mode):
    """Also where it is the only candidate; what is nearest by length knows nothing of it."""
    for output, expected in (((7, 4), False), ((7, 4, 5), True)):
        [row] = ending_at([asks(mode, target=3, min_p=0.02)], {EOS, 6})
        row = replace(row, history=History([3], list(output)), own_ends=True)
        logits = torch.full((1, VOCAB), -9.0)
        logits[0, 6] = 0.0
        guided, scorer = make_guide()
        scorer.ends = frozenset()
        guided.apply(logits, [row])
        assert (int(logits.argmax()) in (EOS, 6)) is expected


# --- cost and slots --------------------------------------------------------------------------


def test_what_needs_no_scoring_costs_nothing():
    guided, scorer = make_guide()
    asked = [
        OFF,
        asks("tilt", beta=-3, top_k=1),
        asks("equal", target=30, top_p=1e-6),
        asks("equal", target=30, min_entropy=10.0),
        asks("at_most", target=2),  # used up: EOS
    ]
    guided.apply(logits_of(make_rows(asked)), make_rows(asked))
    assert scorer.scored == 0 and len(scorer.free) == 64
    mixed = [*asked, asks("tilt", beta=-3, top_k=4)]
    guided.apply(logits_of(make_rows(mixed)), make_rows(mixed))
    assert 3 <= scorer.scored <= 4  # EOS is known


def test_min_entropy_leaves_p_among_the_candidates():
    rows = make_rows([asks("equal", target=30, min_entropy=10.0, top_k=3)])
    logits = logits_of(rows)
    kept = logits[0].softmax(-1).topk(3)
    make_guide()[0].apply(logits, rows)
    assert_close(logits[0].exp()[kept.indices], kept.values / kept.values.sum())


def test_slots_are_closed_and_idle_ones_taken():
    guided, scorer = make_guide(slots=2)
    settings = asks("tilt", beta=-3)

    def step(*keys):
        rows = [GuidedRow(i, k, settings, History([3], [7]), 1) for i, k in enumerate(keys)]
        guided.apply(logits_of(rows), rows)

    step("a", "b")
    step("b")
    step("b", "c")  # "a" is idle: its slot goes to "c"
    assert len(scorer.free) == 0
    step("a", "c")  # now "b" is
    guided.close("b")
    assert len(scorer.free) == 0
    guided.close("a")
    guided.close("a")
    guided.close("never seen")
    assert len(scorer.free) == 1


def test_full_pool_is_refused_before_anything_is_written():
    guided, _ = make_guide(slots=2)
    rows = make_rows([asks("tilt", beta=-3)] * 3)
    logits = logits_of(rows)
    before = logits.clone()
    with pytest.raises(PoolExhausted):
        guided.apply(logits, rows)
    assert torch.equal(logits, before)


# --- bad input -------------------------------------------------------------------------------


def test_bad_construction():
    scorer = ToyScorer(POLICY)
    with pytest.raises(ValueError, match="no EOS token is given"):
        Guide(scorer, eos_token_ids=[], max_candidates=4)
    with pytest.raises(ValueError, match="max_candidates must be at least 1, got 0"):
        Guide(scorer, eos_token_ids=[EOS], max_candidates=0)
    scorer.config = make_config(gamma=None)
    with pytest.raises(ValueError, match="has no gamma yet"):
        Guide(scorer, eos_token_ids=[EOS], max_candidates=4)


def test_a_larger_vocabulary_is_refused():
    guided, _ = make_guide()
    rows = make_rows([asks("tilt", beta=1)])
    with pytest.raises(ValueError, match="chooses among 20 tokens, but the LenVM knows only 12"):
        guided.apply(torch.zeros(1, 20), rows)
    with pytest.raises(ValueError, match="EOS token 1 is outside the vocabulary of 1"):
        guided.check_vocabulary(1)


def test_history():
    history = History([4, 5], output := [])
    output += [6, 7]
    assert len(history) == 4
    assert [history.tail(i) for i in (0, 1, 2, 4)] == [[4, 5, 6, 7], [5, 6, 7], [6, 7], []]
    with pytest.raises(ValueError, match=r"start must be in \[0, 4\], got 5"):
        history.tail(5)
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        History([], [1])
