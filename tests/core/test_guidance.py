"""Guidance rules: by hand, properties over all modes, the end of the budget, bad input."""

import math
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close

from lenvm_rl.core import (
    MODES,
    forbids_eos,
    guide,
    length_to_u,
    select_candidates,
    tokens_left,
)

INF = math.inf
GAMMA = 0.99
P = torch.tensor([0.5, 0.3, 0.2])
LENGTHS = torch.tensor([0.0, 40.0, 90.0])  # the first is EOS


def code(mode: str) -> torch.Tensor:
    return torch.tensor([MODES.index(mode)])


def one(mode, p=P, lengths=LENGTHS, *, eos=0, **numbers):
    """Guided probabilities of a single row, and whether EOS is forced."""
    is_eos = torch.arange(len(p)) == (-1 if eos is None else eos)
    guided = guide(
        p.log()[None],
        lengths[None],
        torch.ones(1, len(p), dtype=torch.bool),
        is_eos[None],
        mode=code(mode),
        gamma=GAMMA,
        **numbers,
    )
    return guided.log_probs[0].double().exp(), bool(guided.force_eos[0])


def horizons(lengths=LENGTHS):
    return length_to_u(lengths.double(), gamma=GAMMA)


@st.composite
def batches(draw, rows=6):
    """Keyword arguments of `guide` for rows of all modes and settings."""
    k = draw(st.integers(1, 10))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def rand(*shape):
        return torch.rand(*shape, generator=rng)

    is_eos = torch.zeros(rows, k, dtype=torch.bool)
    is_eos[:, 0] = rand(rows) < 0.5
    mask = rand(rows, k) < 0.8
    mask[:, 0] = True
    log_probs = (rand(rows, k) * 8).masked_fill(~mask, -INF).log_softmax(-1)
    lengths = 10 ** (rand(rows, k) * 4)
    return {
        "log_probs": log_probs,
        "lengths": lengths,
        "mask": mask,
        "is_eos": is_eos,
        "mode": torch.randint(0, len(MODES), (rows,), generator=rng),
        "gamma": 0.9 + 0.0999 * rand(rows).double(),
        "generated": torch.randint(0, 300, (rows,), generator=rng),
        "target": torch.randint(0, 2000, (rows,), generator=rng),
        "beta": (rand(rows) - 0.5) * 40,
        "scale": rand(rows) * 2,
        **{
            name: rand(rows) < 0.5
            for name in ("count_eos", "force_eos", "scale_length", "value_space", "extreme")
        },
        "short_weight": 0.5 + rand(rows) * 3,
        "max_beta": 1 + rand(rows) * 50,
    }


# --- by hand ---------------------------------------------------------------------------------


def test_off_and_neutral_strengths_keep_the_bits():
    rng = torch.Generator().manual_seed(0)
    log_probs = torch.randn(5, 7, generator=rng).log_softmax(-1)
    lengths = torch.rand(5, 7, generator=rng) * 100
    rest = torch.ones(5, 7, dtype=torch.bool), torch.zeros(5, 7, dtype=torch.bool)
    for mode, numbers in (("off", {}), ("tilt", {"beta": 0.0}), ("scale", {"scale": 1.0})):
        codes = code(mode).expand(5)
        guided = guide(log_probs, lengths, *rest, mode=codes, gamma=GAMMA, **numbers)
        assert torch.equal(guided.log_probs, log_probs), mode
        assert not guided.force_eos.any()


def test_tilt_by_hand():
    weights = P * torch.exp(-3.0 * horizons())
    assert_close(one("tilt", beta=-3.0)[0], weights / weights.sum(), rtol=1e-6, atol=1e-7)


def test_scale_of_horizon_and_of_length():
    probs, _ = one("scale", scale=0.5)
    assert (probs * horizons()).sum().item() == pytest.approx(
        (P * horizons()).sum().item() / 2, abs=1e-6
    )
    probs, _ = one("scale", scale=1.5, scale_length=True)
    assert (probs * LENGTHS).sum().item() == pytest.approx(
        (P * LENGTHS).sum().item() * 1.5, rel=1e-6
    )
    assert one("scale", scale=0.0)[0].tolist() == [1, 0, 0]
    assert one("scale", scale=100.0)[0].tolist() == [0, 0, 1]  # as far as the candidates go


def test_equal_picks_the_nearest():
    for target, expected in ((1, 0), (19, 0), (21, 1), (64, 1), (66, 2), (10**6, 2)):
        assert one("equal", target=target)[0].argmax() == expected
    # between 40 and 90, in value space the middle lies where gamma**n is the mean of both
    middle = math.log((GAMMA**40 + GAMMA**90) / 2) / math.log(GAMMA)
    assert middle < 62
    assert one("equal", target=math.floor(middle), value_space=True)[0].argmax() == 1
    assert one("equal", target=math.ceil(middle), value_space=True)[0].argmax() == 2


def test_equal_can_count_too_few_tokens_for_more_than_too_many():
    # between 0 and 40, 2.5 n = 40 - n at n = 11.4; between 40 and 90, 2.5 (n - 40) = 90 - n at 54.3
    for target, expected in ((11, 0), (12, 1), (54, 1), (55, 2)):
        assert one("equal", target=target, short_weight=2.5)[0].argmax() == expected


def test_equal_ties_go_to_the_more_probable():
    p = torch.tensor([0.1, 0.2, 0.6, 0.1])
    lengths = torch.tensor([30.0, 50.0, 50.0, 70.0])
    assert one("equal", p, lengths, eos=None, target=40)[0].argmax() == 2
    assert one("equal", p, lengths, eos=None, target=60)[0].argmax() == 2


def test_equal_soft_meets_the_target():
    for target in (1, 20, 40, 85):
        probs, _ = one("equal_soft", target=target)
        assert (probs * horizons()).sum().item() == pytest.approx(1 - GAMMA**target, abs=1e-6)


def test_at_most_and_at_least_steer_only_when_needed():
    mean = (P * horizons()).sum().item()
    fits = math.ceil(math.log1p(-mean) / math.log(GAMMA))
    for target in (fits, fits + 1, 1000):
        assert_close(one("at_most", target=target)[0], P.double())
    probs, _ = one("at_most", target=fits - 1)
    assert (probs * horizons()).sum().item() == pytest.approx(1 - GAMMA ** (fits - 1), abs=1e-6)
    for target in (1, fits - 1):
        assert_close(one("at_least", target=target)[0], P.double())
    probs, _ = one("at_least", target=fits)
    assert (probs * horizons()).sum().item() == pytest.approx(1 - GAMMA**fits, abs=1e-6)


def test_at_most_takes_the_shortest_when_nothing_fits():
    probs, _ = one("at_most", P, LENGTHS + 30, eos=None, target=10)
    assert probs.tolist() == [1, 0, 0]


def test_at_most_with_a_risk_bounds_the_chance():
    asked = {"target": 50, "generated": 0, "beyond": torch.tensor([[0.9, 0.1, 0.8]])}
    p = torch.tensor([0.2, 0.3, 0.5])  # EOS has nothing beyond it, whatever is said
    kept, _ = one("at_most", p, risk=0.5, **asked)
    assert_close(kept, p.double())  # .3 * .1 + .5 * .8 = .43
    bound, _ = one("at_most", p, risk=0.25, **asked)
    assert float(bound @ torch.tensor([0.0, 0.1, 0.8]).double()) == pytest.approx(0.25, abs=1e-6)
    tilt = (bound / p).log()  # along what is beyond
    slope = (tilt[2] - tilt[0]) / 0.8
    assert_close(tilt[1] - tilt[0], 0.1 * slope)
    none, _ = one("at_most", p, eos=None, risk=0.05, **asked)
    assert_close(none, torch.tensor([0.0, 1.0, 0.0]).double())  # not to be had: the least chance
    mean, _ = one("at_most", p, risk=0.0, **asked)
    without, _ = one("at_most", p, target=50, generated=0)
    assert torch.equal(mean, without)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=2, max_size=6), st.data())
def test_a_risk_is_met_wherever_it_can_be(candidates, data):
    p, beyond = (torch.tensor(x) for x in zip(*candidates, strict=True))
    p, risk = p / p.sum(), data.draw(st.floats(0.01, 0.99))
    lengths = torch.linspace(1, 90, len(p))
    asked = {"target": 50, "generated": 0, "beyond": beyond[None], "risk": risk}
    guided, _ = one("at_most", p, lengths, eos=None, **asked)
    chance = float(guided @ beyond.double())
    assert chance <= max(risk, float(beyond.min())) + 1e-5
    if float(p.double() @ beyond.double()) <= risk - 1e-6:
        assert_close(guided, p.double())


def test_at_least_is_bounded_unless_extreme():
    bounded, _ = one("at_least", target=10**6, max_beta=2.0)
    assert_close(bounded, one("tilt", beta=2.0)[0])
    assert one("at_least", target=10**6, extreme=True)[0].tolist() == [0, 0, 1]
    assert one("at_least", target=1, extreme=True)[0].tolist() == [0, 0, 1]
    assert_close(one("at_least", target=5, generated=5, extreme=True)[0], P.double())


def test_eos_has_horizon_zero_whatever_the_model_says():
    wrong = torch.tensor([77.0, 40.0, 90.0])
    for mode, numbers in (("tilt", {"beta": -4.0}), ("equal", {"target": 77}), ("scale", {})):
        numbers = {"scale": 0.7, **numbers}
        assert torch.equal(one(mode, P, wrong, **numbers)[0], one(mode, **numbers)[0])
    assert one("equal", P, wrong, target=1)[0].argmax() == 0


# --- the end of the budget -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["equal", "equal_soft", "at_most"])
def test_used_up_budget_takes_eos_else_the_shortest(mode):
    for generated in (10, 15):
        assert one(mode, target=10, generated=generated)[0].tolist() == [1, 0, 0]
        probs, forced = one(mode, P, LENGTHS + 1, eos=None, target=10, generated=generated)
        assert probs.tolist() == [1, 0, 0] and not forced
        assert one(mode, target=10, generated=generated, force_eos=True)[1]
    assert not one(mode, target=10, generated=9, force_eos=True)[1]
    assert one(mode, target=10, generated=9, force_eos=True, count_eos=True)[1]


def test_at_least_forbids_eos_before_n_and_never_forces_it():
    codes = torch.tensor([MODES.index("at_least")] * 4 + [MODES.index("at_most")])
    generated = torch.tensor([0, 9, 10, 9, 0])
    count = torch.tensor([False, False, False, True, False])
    forbidden = forbids_eos(codes, generated, 10, count_eos=count)
    assert forbidden.tolist() == [True, True, False, False, False]
    assert tokens_left(10, generated, count_eos=count).tolist() == [10, 1, 0, 0, 10]
    assert not one("at_least", target=5, generated=9, force_eos=True)[1]


def test_an_end_that_no_length_knows_of_waits_for_n_in_equal():
    codes = torch.tensor([MODES.index(mode) for mode in MODES])
    held = {mode: mode in ("equal", "equal_soft", "at_least") for mode in MODES}
    assert forbids_eos(codes, 9, 10, own_ends=True).tolist() == list(held.values())
    own = codes == MODES.index("equal")
    assert forbids_eos(codes, 9, 10, own_ends=own).sum() == 2
    assert not forbids_eos(codes, 10, 10, own_ends=True).any()


# --- properties ------------------------------------------------------------------------------


@settings(max_examples=200)
@given(batches())
def test_results_are_distributions_over_the_candidates(batch):
    guided = guide(**batch)
    assert (guided.log_probs[~batch["mask"]] == -INF).all()
    assert_close(guided.log_probs.exp().sum(1), torch.ones(6))


@given(batches(), st.integers(0, 5))
def test_rows_do_not_influence_each_other(batch, row):
    together = guide(**batch)
    one = slice(row, row + 1)
    alone = guide(**{name: x[one] for name, x in batch.items()})
    assert_close(together.log_probs[one].exp(), alone.log_probs.exp(), rtol=0, atol=1e-7)
    assert together.force_eos[row] == alone.force_eos[0]
    shuffled = guide(**{name: x.flip(0) for name, x in batch.items()})
    same = shuffled.log_probs.flip(0).exp()
    assert_close(same, together.log_probs.exp(), rtol=0, atol=1e-7)


@given(batches(), st.integers(0, 2**32))
def test_permuted_candidates_permute_the_result(batch, seed):
    order = torch.randperm(batch["mask"].shape[1], generator=torch.Generator().manual_seed(seed))
    moved = {**batch}
    for name in ("log_probs", "lengths", "mask", "is_eos"):
        moved[name] = batch[name][:, order]
    expected = guide(**batch).log_probs[:, order].exp()
    assert_close(guide(**moved).log_probs.exp(), expected, rtol=0, atol=1e-6)


@given(batches(), st.floats(-20, 20))
def test_scaling_p_does_not_matter(batch, factor):
    """Rows that keep p keep its scale, too; all others are normalised."""
    batch["log_probs"] = batch["log_probs"].double()
    expected = guide(**batch).log_probs
    scaled = guide(**{**batch, "log_probs": batch["log_probs"] + factor}).log_probs
    assert_close(scaled.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-8)


@given(batches())
def test_naming_the_modes_that_occur_changes_no_result(batch):
    expected = guide(**batch)
    lean = guide(**batch, present={MODES[i] for i in batch["mode"].tolist()})
    assert torch.equal(lean.log_probs, expected.log_probs)
    assert torch.equal(lean.force_eos, expected.force_eos)


@given(batches(), st.integers(0, 9))
def test_equal_at_the_exact_value_picks_that_candidate(batch, column):
    rows = torch.arange(6)
    column = column % batch["mask"].shape[1]
    batch["mask"][:, column] = True
    batch["log_probs"] = batch["log_probs"].clamp(min=-20)
    exact = batch["lengths"].round().masked_fill(batch["is_eos"], 0.0)
    batch.update(lengths=exact, mode=code("equal").expand(6), value_space=False, count_eos=False)
    batch.update(target=exact[:, column] + batch["generated"])
    chosen = guide(**batch).log_probs.argmax(1)
    used_up = exact[:, column] == 0  # then EOS
    assert (exact[rows, chosen] == exact[:, column])[~used_up].all()


def test_long_horizons_keep_their_order():
    """Lengths whose values are all -1 in any precision are still told apart."""
    lengths = torch.tensor([50_000.0, 50_040.0, 50_090.0])
    for target, expected in ((50_001, 0), (50_039, 1), (50_089, 2)):
        for space in (False, True):
            numbers = {"target": target, "value_space": space, "eos": None}
            assert one("equal", P, lengths, **numbers)[0].argmax() == expected
    soft, _ = one("equal_soft", P, lengths, eos=None, target=50_020)
    relative = horizons(lengths - 50_000)
    assert (soft * relative).sum().item() == pytest.approx(1 - GAMMA**20, abs=1e-6)


def test_nothing_depends_on_the_contents_of_tensors():
    """So nothing waits for a device: on tensors without contents, asking for one would raise."""
    with FakeTensorMode():
        ids, log_probs, mask = select_candidates(
            torch.randn(4, 50),
            temperature=torch.ones(4),
            max_candidates=10,
            top_k=torch.full((4,), 8),
            top_p=torch.full((4,), 0.9),
            min_p=torch.full((4,), 0.1),
            forbidden=torch.ones(4, dtype=torch.bool),
            eos_ids=torch.tensor([1]),
        )
        codes, lengths = torch.zeros(4, dtype=torch.long), torch.rand(4, 10)
        guided = guide(log_probs, lengths, mask, ids == 1, mode=codes, gamma=GAMMA)
        assert guided.log_probs.shape == (4, 10)
        with pytest.raises(DataDependentOutputException):
            guided.log_probs.sum().item()


def test_float32_alone_is_enough(monkeypatch):
    """As on a device without float64."""
    rules = [("tilt", {"beta": -3.0}), ("scale", {"scale": 0.6}), ("equal", {"target": 66})]
    rules += [(mode, {"target": 33}) for mode in ("equal_soft", "at_most", "at_least")]
    expected = [one(mode, **numbers)[0] for mode, numbers in rules]
    monkeypatch.setattr(sys.modules["lenvm_rl.core.tilt"], "_NO_FLOAT64", {"cpu"})
    for (mode, numbers), wide in zip(rules, expected, strict=True):
        assert_close(one(mode, **numbers)[0], wide, rtol=0, atol=2e-6)
    probs, _ = one("equal_soft", target=20)
    assert (probs * horizons()).sum().item() == pytest.approx(1 - GAMMA**20, abs=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match=r"unknown numbers \['betta'\]"):
        one("tilt", betta=1.0)
    with pytest.raises(ValueError, match="target must be a number or have shape"):
        one("equal", target=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="gamma must be in"):
        guide(
            torch.zeros(1, 2),
            torch.zeros(1, 2),
            torch.ones(1, 2, dtype=torch.bool),
            torch.zeros(1, 2, dtype=torch.bool),
            mode=code("off"),
            gamma=1.0,
        )
    with pytest.raises(ValueError, match="same shape"):
        one("off", P, LENGTHS[:2])
