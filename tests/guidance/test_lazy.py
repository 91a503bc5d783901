"""Does a bound that is looked at late do what one does that is looked at at every token?"""

import math
from dataclasses import replace

import pytest
import torch

from lenvm_rl.core import LengthBins
from lenvm_rl.core.guidance import MODES, SPARE_SHARES, guide, tokens_to_spare
from lenvm_rl.guidance import GuidanceSettings, Guide, GuidedRow, History
from tests.guidance.toy import EOS, GAMMA, VOCAB, MarkovPolicy, ToyScorer, countdown

LAZY, EAGER = 8.0, 0.0


def responses(settings, *, policy, prompt, seed=0, drops_rows=None, limit=400):
    """Every row's tokens, drawn with random numbers of its own, and how often rows were scored."""
    scorer = ToyScorer(policy, slots=len(settings))
    size = len(policy.logits)
    steering = Guide(scorer, eos_token_ids=[EOS], max_candidates=size, drops_rows=drops_rows)
    draws = [torch.Generator().manual_seed(seed + i) for i in range(len(settings))]
    outputs: list[list[int]] = [[] for _ in settings]
    live = list(range(len(settings)))
    while live:
        rows = [
            GuidedRow(i, key, settings[key], History([prompt], outputs[key]), 1)
            for i, key in enumerate(live)
        ]
        logits = torch.stack([policy.logits[row.history.tail(0)[-1]] for row in rows])
        steering.apply(logits, rows)
        for key, row in zip(live, logits.softmax(-1), strict=True):
            sum_to = row.double().cumsum(-1)
            drawn = torch.rand(1, generator=draws[key], dtype=torch.float64) * sum_to[-1]
            outputs[key].append(int(torch.searchsorted(sum_to, drawn, right=True)))
        for key in [k for k in live if outputs[k][-1] == EOS or len(outputs[k]) == limit]:
            steering.close(key)
            live.remove(key)
    return outputs, scorer.scored


def asked(mode, lazy, targets):
    return [GuidanceSettings(mode=mode, target=n, min_p=0.0, lazy=lazy) for n in targets]


@pytest.mark.parametrize("drops_rows", [None, False], ids=["cpu", "elsewhere"])
@pytest.mark.parametrize("mode", ["at_most", "at_least"])
def test_a_prediction_within_the_margin_is_met_exactly(mode, drops_rows):
    """In this world it moves by at most 4 tokens a token, and n by one."""
    targets = [20, 40, 60, 90, 150, 30] * 4
    world = {"policy": countdown(), "prompt": 42, "drops_rows": drops_rows}
    late, few = responses(asked(mode, LAZY, targets), **world)
    always, many = responses(asked(mode, EAGER, targets), **world)
    assert late == always
    assert few < 0.75 * many


def test_a_bound_that_never_acts_is_hardly_looked_at():
    late, few = responses(asked("at_most", LAZY, [2000] * 8), policy=countdown(), prompt=62)
    tokens = sum(map(len, late))
    _, many = responses(asked("at_most", EAGER, [2000] * 8), policy=countdown(), prompt=62)
    assert tokens > 150 and many > 2.5 * tokens
    assert few <= 3 * len(late)  # three candidates each, once


@pytest.mark.parametrize("mode", ["at_most", "at_least"])
def test_n_holds_where_the_prediction_moves_faster(mode):
    targets = [3, 10, 25, 60] * 8
    late, _ = responses(asked(mode, LAZY, targets), policy=MarkovPolicy(), prompt=5, seed=3)
    lengths = [len(output) - (output[-1] == EOS) for output in late]
    within = [
        (got <= n) if mode == "at_most" else got >= n
        for got, n in zip(lengths, targets, strict=True)
    ]
    assert all(within)


def test_a_look_says_what_the_bound_sees():
    """at_most and at_least keep p exactly where there is something to spare."""
    rng = torch.Generator().manual_seed(0)
    rows, k = 64, 5
    log_probs = torch.randn(rows, k, generator=rng).log_softmax(-1)
    lengths = 80 * torch.rand(rows, k, generator=rng)
    left = torch.randint(1, 80, (rows,), generator=rng)
    for name in ("at_most", "at_least"):
        mode = torch.full((rows,), MODES.index(name))
        everything = torch.ones(rows, k, dtype=torch.bool)
        numbers = {"mode": mode, "gamma": GAMMA}
        guided = guide(log_probs, lengths, everything, ~everything, target=left, **numbers)
        keeps = (guided.log_probs == log_probs).all(-1)
        spare = tokens_to_spare(log_probs, lengths, left=left, **numbers)
        assert 10 < int(keeps.sum()) < 54
        assert torch.equal(keeps, spare >= 0)
        # A bound that is moved by what there is to spare acts from there on.
        own = guide(
            log_probs.repeat(2, 1),
            lengths.repeat(2, 1),
            everything.repeat(2, 1),
            ~everything.repeat(2, 1),
            mode=mode.repeat(2),
            gamma=GAMMA,
            target=torch.cat([left - spare + 0.01, left - spare - 0.01])
            if name == "at_most"
            else torch.cat([left + spare - 0.01, left + spare + 0.01]),
        ).log_probs.view(2, rows, k)
        unclipped = (left - spare if name == "at_most" else left + spare) > 0.1
        assert (own[0] == log_probs).all(-1)[unclipped].all()
        assert not (own[1] == log_probs).all(-1)[unclipped].any()


def test_a_chance_has_to_spare_what_the_mixture_of_the_candidates_says():
    bins = LengthBins.up_to(60)
    rng = torch.Generator().manual_seed(1)
    outputs = 2 * torch.randn(16, 4, len(bins), generator=rng)
    log_probs = torch.randn(16, 4, generator=rng).log_softmax(-1)
    left = torch.full((16,), 56.0)
    after = bins.of(outputs)
    beyond = torch.stack([after.longer_than(left[:, None] * (1 - x)) for x in SPARE_SHARES])
    found = tokens_to_spare(
        log_probs,
        torch.zeros(16, 4),
        mode=torch.full((16,), MODES.index("at_most")),
        gamma=GAMMA,
        left=left,
        risk=torch.full((16, 1), 0.3).squeeze(1),
        beyond=beyond,
    )
    mixture = (log_probs.exp()[..., None] * after.probabilities).sum(1)
    needed = bins.of(mixture.log()).quantile(0.7)  # P(l > n) <= .3 from here on
    expected = [
        max([x * 56 for x in SPARE_SHARES if 56 * (1 - x) >= n - 1e-3] or [0.0])
        for n in needed.tolist()
    ]
    exact = [n for n in needed.tolist()]
    assert len(set(found.tolist())) > 1
    for got, wanted, n in zip(found.tolist(), expected, exact, strict=True):
        assert got == wanted or abs(56 - got - n) <= 1.0  # interpolated inside a bin


def test_a_broken_prediction_is_looked_at_again():
    class Broken(ToyScorer):
        def score(self, slots, histories, candidates, mask):
            return super().score(slots, histories, candidates, mask) * math.nan

    scorer = Broken(MarkovPolicy())
    guide_ = Guide(scorer, eos_token_ids=[EOS], max_candidates=VOCAB)
    output = [5]
    row = GuidedRow(0, 0, asked("at_most", LAZY, [50])[0], History([3], output), 1)
    for _ in range(2):
        before = scorer.scored
        guide_.apply(MarkovPolicy().logits[5:6].clone(), [row])
        assert scorer.scored > before
        output.append(5)


@pytest.mark.parametrize("lazy", [0.5, -1, math.inf, "often"])
def test_a_lazy_that_means_nothing_is_refused(lazy):
    with pytest.raises(ValueError, match="lenvm_lazy must be"):
        GuidanceSettings.from_args({"lenvm_mode": "at_most", "lenvm_target": 9, "lenvm_lazy": lazy})


def test_what_always_acts_never_waits():
    waits = GuidanceSettings(mode="at_least", target=9)
    assert waits.may_wait
    assert not replace(waits, extreme=True).may_wait
    assert not GuidanceSettings(mode="equal", target=9).may_wait
