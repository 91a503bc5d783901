"""Tilting: by hand, bit equality, invariances, monotone, and means met however badly scaled."""

import importlib
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from lenvm_rl.core import tilt, tilt_to_mean

module = importlib.import_module("lenvm_rl.core.tilt")  # as an attribute, tilt is the function
INF = math.inf


@st.composite
def steps(draw, rows: int = 1):
    """log-probabilities, horizons [rows, K] of any scale, and where in their range to go."""
    k = draw(st.integers(1, 12))
    spread = draw(st.sampled_from([0.0, 1.0, 10.0, 100.0, 1000.0]))
    width = draw(st.sampled_from([0.0, 1e-6, 1e-3, 1.0]))
    shift = draw(st.floats(0.0, 1.0 - width))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    unit = torch.rand(2, rows, k, generator=rng, dtype=torch.float64)
    if draw(st.booleans()):  # candidates with the same horizon
        unit[1] = (unit[1] * 3).round() / 3
    share = draw(st.one_of(st.floats(0.0, 1.0), st.sampled_from([1e-9, 1e-5, 0.5, 1 - 1e-9])))
    return (unit[0] * spread).log_softmax(-1).float(), shift + width * unit[1], share


def mean(log_probs, x):
    return (log_probs.double().exp() * x.double()).nan_to_num(0.0).sum(-1)


def test_tilt_by_hand():
    # weights 1/2 * 2**0 and 1/2 * 2**1 -> 1/3, 2/3
    log_probs = torch.tensor([[0.5, 0.5]]).log()
    tilted = tilt(log_probs, torch.tensor([[0.0, 1.0]]), math.log(2.0))
    assert_close(tilted.exp(), torch.tensor([[1 / 3, 2 / 3]]))


@given(steps(rows=3))
def test_beta_zero_returns_the_same_bits(step):
    log_probs, u, _ = step
    assert torch.equal(tilt(log_probs, u, 0.0), log_probs)
    mixed = tilt(log_probs, u, torch.tensor([0.0, -3.0, 0.0]))
    assert torch.equal(mixed[[0, 2]], log_probs[[0, 2]])


@given(steps(), st.floats(-200, 200), st.floats(-50, 50))
def test_scaling_p_does_not_matter(step, beta, factor):
    log_probs, u, share = step
    scaled = log_probs.double() + factor
    expected = tilt(log_probs.double(), u, beta).exp()
    if beta != 0:
        assert_close(tilt(scaled, u, beta).exp(), expected, rtol=0, atol=1e-10)
    target = u.min() + share * (u.max() - u.min())
    ours, _ = tilt_to_mean(scaled, u, target.item())
    plain, _ = tilt_to_mean(log_probs.double(), u, target.item())
    assert_close(mean(ours, u), mean(plain, u), rtol=0, atol=1e-9)


@given(steps())
def test_mean_horizon_grows_with_beta(step):
    log_probs, u, _ = step
    betas = [-1e3, -50.0, -5.0, -0.1, 0.1, 5.0, 50.0, 1e3]
    means = [mean(tilt(log_probs.double(), u, beta), u).item() for beta in betas]
    assert all(b >= a - 1e-12 for a, b in zip(means, means[1:], strict=False)), means


def test_mean_grows_strictly_where_horizons_differ():
    log_probs, u = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.3, 0.5, 0.9]])
    means = [mean(tilt(log_probs, u, beta), u).item() for beta in (-20, -1, 0, 1, 20)]
    assert all(b > a + 1e-3 for a, b in zip(means, means[1:], strict=False)), means


@settings(max_examples=300)
@given(steps())
def test_the_mean_is_met_wherever_it_lies_in_range(step):
    log_probs, u, share = step
    low, high = u.min(), u.max()
    target = low + share * (high - low)
    met, _ = tilt_to_mean(log_probs, u, target.item())
    assert met.dtype == torch.float32
    assert_close(met.exp().sum(-1), torch.ones(1))
    # relative to the range: also met where all horizons lie within a millionth
    if high > low:
        assert mean(met, (u - low) / (high - low)).item() == pytest.approx(share, abs=1e-6)


@settings(max_examples=200)
@given(steps())
def test_the_mean_is_met_in_float32_alone(step):
    """As on a device without float64."""
    log_probs, u, share = step
    u = u.float()
    target = u.min() + share * (u.max() - u.min())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_NO_FLOAT64", {"cpu"})
        met, beta = tilt_to_mean(log_probs, u, target.item())
    assert beta.dtype == torch.float32
    assert abs(mean(met, u).item() - target.item()) <= 1e-6


@given(steps())
def test_result_is_the_tilt_by_the_returned_beta(step):
    log_probs, u, share = step
    target = u.min() + share * (u.max() - u.min())
    met, beta = tilt_to_mean(log_probs.double(), u, target.item())
    # The mean is met exactly by mixing two neighbouring tilts; beta names one of them, and the
    # steeper the tilt, the more its neighbours differ.
    if beta.isfinite() and beta.abs() * (u.max() - u.min()) < 100:
        again = tilt(log_probs.double(), u, beta).exp()
        assert_close(met.exp(), again, rtol=0, atol=1e-4)


def test_out_of_range_gives_the_nearest_reachable_distribution():
    log_probs = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().repeat(4, 1)
    u = torch.tensor([[0.5, 0.2, 0.2, 0.9]]).repeat(4, 1)
    target = torch.tensor([0.1, -INF, 0.95, INF])
    met, beta = tilt_to_mean(log_probs, u, target)
    shortest, longest = [0.0, 0.6, 0.4, 0.0], [0.0, 0.0, 0.0, 1.0]  # ties keep their proportions
    assert_close(met.exp(), torch.tensor([shortest, shortest, longest, longest]))
    assert beta.tolist() == [-INF, -INF, INF, INF]


def test_one_candidate_and_equal_horizons_keep_p():
    one, beta = tilt_to_mean(torch.zeros(1, 1), torch.tensor([[0.3]]), 0.7)
    assert one.tolist() == [[0.0]] and beta.tolist() == [0.0]
    log_probs = torch.tensor([[0.7, 0.3]]).log()
    same, beta = tilt_to_mean(log_probs, torch.full((1, 2), 0.4), 0.1)
    assert_close(same, log_probs)
    assert beta.tolist() == [0.0]


def test_mean_length_by_tilting_horizons():
    log_probs = torch.tensor([[0.5, 0.3, 0.2]]).log()
    lengths = torch.tensor([[10.0, 200.0, 3000.0]])
    u = -torch.expm1(lengths * math.log(0.999))
    for target in (10.5, 100.0, 660.0, 2990.0):
        met, _ = tilt_to_mean(log_probs, u, target, statistic=lengths)
        assert mean(met, lengths).item() == pytest.approx(target, rel=1e-6)


@given(steps(rows=4), st.integers(0, 3))
def test_rows_do_not_influence_each_other(step, row):
    log_probs, u, share = step
    target = u.min(-1).values + share * (u.max(-1).values - u.min(-1).values)
    together, beta = tilt_to_mean(log_probs, u, target)
    one = slice(row, row + 1)
    alone, beta_alone = tilt_to_mean(log_probs[one], u[one], target[one])
    assert_close(together[one].exp(), alone.exp(), rtol=0, atol=1e-7)
    again, _ = tilt_to_mean(log_probs.flip(0), u.flip(0), target.flip(0))
    assert_close(again.flip(0).exp(), together.exp(), rtol=0, atol=1e-7)


def test_what_is_masked_never_matters():
    log_probs = torch.tensor([[0.6, 0.4]]).log()
    u = torch.tensor([[0.2, 0.8]])
    expected, beta = tilt_to_mean(log_probs, u, 0.7)
    for junk in (0.0, 5.0, INF, math.nan):
        padded = torch.tensor([[junk, *log_probs[0].tolist()]])
        wide = torch.tensor([[junk, 0.2, 0.8]])
        met, wide_beta = tilt_to_mean(padded, wide, 0.7, mask=torch.tensor([[False, True, True]]))
        assert_close(met[:, 1:], expected)
        assert met[0, 0] == -INF
        assert_close(wide_beta, beta)
        padded[0, 0] = -INF
        assert_close(tilt(padded, wide, 2.0)[:, 1:], tilt(log_probs, u, 2.0))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"log_probs must have shape \[R, K\]"):
        tilt(torch.zeros(3), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="same shape"):
        tilt_to_mean(torch.zeros(1, 3), torch.zeros(1, 2), 0.5)
    with pytest.raises(ValueError, match="beta must be a number or have shape"):
        tilt(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3))
