"""Agreement of predictions with outcomes: by hand, against scipy, simulated noise."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lenvm_rl.core import (
    at_positions,
    calibration,
    kendall_tau,
    length_to_u,
    mean_relative_error,
    noise_corrected_r2,
    r2,
    relative_error,
    relative_error_by_position,
    remaining_length,
    u_to_length,
)


def test_relative_error_by_hand():
    predicted, true = (
        torch.tensor([[90.0, 110.0], [5.0, 40.0]]),
        torch.tensor([[100, 100], [5, 20]]),
    )
    assert_close(relative_error(predicted, true), torch.tensor([[0.1, 0.1], [0.0, 1.0]]))
    assert mean_relative_error(predicted, true) == pytest.approx(0.3)


def test_at_positions_by_hand():
    # Rows: 9 tokens, 1 token, 4 tokens with padding on both sides and a hole, none.
    mask = torch.tensor(
        [
            [1, 1, 1, 1, 1, 1, 1, 1, 1],
            [1, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 1, 1, 0, 0, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]
    )
    column = torch.arange(9).expand(4, 9)
    picked = at_positions(column, mask, positions=(0.0, 0.25, 0.5, 0.75, 0.9, 1.0))
    # Ranks floor((L - 1) f): 0 2 4 6 7 8 of 9; 0 0 1 2 2 3 of 4 tokens in columns 1 2 5 6.
    expected = torch.tensor([[0.0, 2, 4, 6, 7, 8], [0.0] * 6, [1.0, 1, 2, 5, 5, 6], [math.nan] * 6])
    assert_close(picked, expected, equal_nan=True)


@given(length=st.integers(1, 3000), percent=st.integers(0, 100))
@example(length=101, percent=29)  # 100 * 0.29 is 28.999999999999996
@settings(deadline=None, max_examples=100)
def test_positions_are_floored_exactly(length, percent):
    column = torch.arange(3000)[None]
    picked = at_positions(column, column < length, positions=(percent / 100,))
    assert picked.item() == (length - 1) * percent // 100


def test_relative_error_by_position():
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    true = remaining_length(mask)
    predicted = true * torch.tensor([[1.5], [0.5], [7.0]])
    predicted[0, 4] = 4.0  # one token left, four predicted: relative error 3 at position 1
    error = relative_error_by_position(predicted, true, mask, positions=(0.0, 0.5, 1.0))
    expected = torch.tensor([[0.5, 0.5, 3.0], [0.5, 0.5, 0.5], [math.nan] * 3])
    assert_close(error, expected, equal_nan=True)
    assert_close(error.nanmean(0), torch.tensor([0.5, 0.5, 1.75]))
    # Padding contents never matter.
    predicted[mask == 0] = math.nan
    again = relative_error_by_position(predicted, true, mask, positions=(0.0, 0.5, 1.0))
    assert_close(again, expected, equal_nan=True)
    assert relative_error_by_position(predicted, true, mask).shape == (3, 5)


def test_r2_by_hand():
    true = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert r2(true, true) == 1.0
    assert r2(torch.full((4,), 2.5), true) == 0.0
    assert r2(torch.tensor([1.0, 2.0, 3.0, 5.0]), true) == pytest.approx(1 - 0.25 / 1.25)
    assert r2(-true, true) < 0
    assert math.isnan(r2(true, torch.ones(4)))


def test_noise_corrected_r2_by_hand():
    value = torch.tensor([0.0, 2.0, 4.0, 6.0])
    mc_mean = torch.tensor([1.0, 2.0, 4.0, 5.0])  # error .5, variance 2.5
    noise = torch.tensor([0.2, 0.4, 0.3, 0.1])  # mean .25
    expected = 1 - (0.5 - 0.25) / (2.5 - 0.25)
    assert noise_corrected_r2(value, mc_mean, noise) == pytest.approx(expected)
    assert noise_corrected_r2(value, mc_mean, 0 * noise) == pytest.approx(r2(value, mc_mean))


def test_noise_correction_recovers_the_true_r2():
    """With few continuations per state the raw R2 is far too low, the corrected one is right."""
    rng = torch.Generator().manual_seed(0)
    states, continuations = 20_000, 4
    truth = torch.randn(states, generator=rng)
    value = truth + 0.3 * torch.randn(states, generator=rng)
    samples = truth[:, None] + torch.randn(states, continuations, generator=rng)
    mc_mean, variance = samples.mean(1), samples.var(1) / continuations
    assert r2(value, mc_mean) == pytest.approx(1 - (0.09 + 0.25) / 1.25, abs=0.02)
    assert noise_corrected_r2(value, mc_mean, variance) == pytest.approx(0.91, abs=0.01)


def test_noise_above_the_signal_is_refused():
    mean = torch.tensor([1.0, 1.1, 0.9])
    with pytest.raises(ValueError, match="sample more continuations per state"):
        noise_corrected_r2(mean, mean, torch.ones(3))


def test_kendall_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert kendall_tau(x, x) == pytest.approx(1.0)
    assert kendall_tau(x, -x) == pytest.approx(-1.0)
    assert kendall_tau(x, torch.tensor([1.0, 3.0, 2.0, 4.0])) == pytest.approx(4 / 6)
    # One tie in y: 5 comparable pairs, all concordant, of 6.
    tied = torch.tensor([1, 2, 2, 4])
    assert kendall_tau(x, tied) == pytest.approx(5 / math.sqrt(6 * 5))
    assert math.isnan(kendall_tau(x, torch.ones(4)))
    assert math.isnan(kendall_tau(x, torch.tensor([1.0, math.nan, 2.0, 3.0])))


@pytest.mark.parametrize(("size", "chunk"), [(3, 1), (257, 64), (1000, 1024)])
def test_kendall_matches_scipy(size, chunk):
    stats = pytest.importorskip("scipy.stats")
    rng = torch.Generator().manual_seed(size)
    x = torch.randint(0, size, (size,), generator=rng)  # with ties
    y = x + torch.randint(0, size, (size,), generator=rng)
    expected = stats.kendalltau(x.numpy(), y.numpy(), variant="b").statistic
    assert kendall_tau(x, y, chunk=chunk) == pytest.approx(expected, rel=1e-12)


def test_calibration_by_hand():
    predicted = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.5])
    actual = torch.tensor([1.0, 0.0, 0.2, 0.6, 0.5])
    table = calibration(predicted, actual, bins=2)
    assert table.count.tolist() == [3, 2]
    expected = torch.tensor([0.8 / 3, 0.85], dtype=torch.float64)
    assert_close(table.predicted, expected, rtol=1e-6, atol=0.0)
    expected = torch.tensor([0.7 / 3, 0.8], dtype=torch.float64)
    assert_close(table.actual, expected, rtol=1e-6, atol=0.0)
    assert table.error == pytest.approx((3 * 0.1 / 3 + 2 * 0.05) / 5, rel=1e-5)
    assert calibration(predicted, actual, bins=100).count.tolist() == [1] * 5


def test_calibration_belongs_in_the_space_of_values():
    """A perfect mean value is calibrated in horizons, and falls short in raw lengths (Jensen)."""
    rng = torch.Generator().manual_seed(0)
    gamma, states, samples = 0.99, 200, 400
    scale = torch.linspace(20, 400, states)[:, None]
    lengths = (torch.rand(states, samples, generator=rng).log() * -scale).ceil().clamp(min=1)
    horizon = length_to_u(lengths, gamma=gamma)
    perfect = horizon.mean(1, keepdim=True).expand_as(horizon)
    assert calibration(perfect.flatten(), horizon.flatten()).error < 1e-5
    implied = u_to_length(perfect, gamma=gamma)
    table = calibration(implied.flatten(), lengths.flatten())
    assert (table.predicted < 0.95 * table.actual).all()


PAIR = torch.zeros(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_relative_error(PAIR[:0], PAIR[:0]), r"at least 1 pair\(s\).*got 0"),
        (lambda: r2(PAIR[:1], PAIR[:1]), "at least 2"),
        (lambda: r2(PAIR, PAIR[None]), "same shape"),
        (lambda: noise_corrected_r2(PAIR, PAIR, PAIR[:1]), "same shape"),
        (lambda: kendall_tau(PAIR[:1], PAIR[:1]), "at least 2"),
        (lambda: kendall_tau(PAIR[None], PAIR[None]), r"x must have shape \[M\]"),
        (lambda: calibration(PAIR, PAIR, bins=0), "bins must be at least 1, got 0"),
        (lambda: calibration(PAIR[:0], PAIR[:0]), "at least 1"),
        (lambda: relative_error(PAIR, PAIR[None]), "same shape"),
        (lambda: at_positions(PAIR, PAIR), r"mask must have shape \[B, T\]"),
        (
            lambda: at_positions(PAIR[None], PAIR[None], positions=(1.5,)),
            r"position must be in \[0, 1\], got 1.5",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
