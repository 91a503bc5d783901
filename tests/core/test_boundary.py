"""Ground truth at the prompt boundary and its noise: by hand, simulated, ragged, bad input."""

import math

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import (
    length_to_u,
    mean_relative_error,
    noise_corrected_mre,
    noise_floor,
    prompt_boundary_length,
    u_to_length,
)


def geometric(rng: torch.Generator, mean: torch.Tensor, samples: int) -> torch.Tensor:
    """[P, samples] lengths >= 1 with P(stop) = 1 / mean at each token."""
    uniform = torch.rand(len(mean), samples, generator=rng, dtype=torch.float64)
    return (uniform.log() / torch.log1p(-1 / mean.double())[:, None]).ceil().clamp(min=1)


def test_boundary_length_by_hand():
    # gamma 1/2, lengths 1 and 3: mean of 1/2 and 1/8 is 5/16, so log2(16 / 5) tokens.
    lengths = torch.tensor([[1, 3], [4, 4]])
    expected = torch.tensor([math.log2(16 / 5), 4.0])
    assert_close(prompt_boundary_length(lengths, gamma=0.5), expected)


def test_boundary_length_is_the_length_of_the_mean_horizon():
    rng = torch.Generator().manual_seed(0)
    lengths = geometric(rng, torch.tensor([10.0, 100.0, 500.0]), 64)
    mean = length_to_u(lengths, gamma=0.997).mean(1)
    expected = u_to_length(mean, gamma=0.997).float()
    assert_close(prompt_boundary_length(lengths, gamma=0.997), expected, rtol=1e-5, atol=0.0)
    assert (expected < lengths.mean(1)).all()  # Jensen


def test_boundary_length_does_not_saturate():
    lengths = torch.full((1, 4), 100_000)
    assert prompt_boundary_length(lengths, gamma=0.99).item() == pytest.approx(100_000, rel=1e-6)


def test_missing_samples_are_left_out():
    lengths = torch.tensor([[1, 3, 999], [4, 999, 999], [999, 999, 999]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    expected = torch.tensor([math.log2(16 / 5), 4.0, math.nan])
    actual = prompt_boundary_length(lengths, gamma=0.5, mask=mask)
    assert_close(actual, expected, equal_nan=True)


def test_noise_floor_by_hand():
    # Every other sample: (2, 2) against (4, 4): |2 - 4| / L_GT / 2, L_GT = -log2((1/4 + 1/16) / 2).
    lengths = torch.tensor([[2, 4, 2, 4]])
    expected = 2 / -math.log2(5 / 32) / 2
    assert noise_floor(lengths, gamma=0.5) == pytest.approx(expected, rel=1e-6)
    assert noise_floor(torch.full((3, 2), 7), gamma=0.5) == 0.0
    padded = torch.tensor([[999, 2, 4, 999, 2, 4]])
    mask = padded < 999
    assert noise_floor(padded, gamma=0.5, mask=mask) == pytest.approx(expected, rel=1e-6)


def test_floor_is_the_error_of_a_perfect_predictor():
    """MRE of the true boundary length equals the floor; the correction removes it."""
    rng = torch.Generator().manual_seed(1)
    gamma, samples = 0.997, 32
    mean = torch.linspace(30, 300, 2000)
    lengths = geometric(rng, mean, samples)
    # E[gamma**L] of a geometric length with stop probability p: p gamma / (1 - (1 - p) gamma).
    stop = 1 / mean
    survived = stop * gamma / (1 - (1 - stop) * gamma)
    perfect = torch.log(survived) / math.log(gamma)
    truth = prompt_boundary_length(lengths, gamma=gamma)
    mre, floor = mean_relative_error(perfect, truth), noise_floor(lengths, gamma=gamma)
    assert mre == pytest.approx(floor, rel=0.05)
    assert noise_corrected_mre(mre, floor) < 0.3 * mre

    biased = mean_relative_error(1.5 * perfect, truth)
    assert noise_corrected_mre(biased, floor) == pytest.approx(0.5, abs=0.05)


def test_noise_corrected_mre_by_hand():
    assert noise_corrected_mre(0.5, 0.3) == pytest.approx(0.4)
    assert noise_corrected_mre(0.3, 0.5) == 0.0


LENGTHS = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prompt_boundary_length(LENGTHS, gamma=1.0), "gamma must be in"),
        (lambda: prompt_boundary_length(LENGTHS[0], gamma=0.9), r"shape \[P, G\]"),
        (lambda: prompt_boundary_length(LENGTHS, gamma=0.9, mask=LENGTHS[:1]), "same shape"),
        (lambda: noise_floor(LENGTHS[:, :1], gamma=0.9), "two samples of every prompt, got 1"),
        (lambda: noise_floor(LENGTHS[:0], gamma=0.9), "got 0 for the poorest of 0"),
        (lambda: noise_floor(LENGTHS, gamma=1.2), "gamma must be in"),
        (lambda: noise_corrected_mre(-0.1, 0.1), "mre and floor must be >= 0, got -0.1 and 0.1"),
        (lambda: noise_corrected_mre(0.1, math.nan), "must be >= 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
