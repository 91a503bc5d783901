"""Bins over log length: by hand, against the sum over whole lengths, laws, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lenvm_rl.core import (
    LengthBins,
    bins_of,
    length_to_logit,
    length_to_u,
    logit_to_length,
    read_outputs,
)

BINS = LengthBins((1, 2, 4, 8))  # 1; 2, 3; 4 and more, read as 4 to 7
HALF = torch.tensor([0.5, 0.25, 0.25]).log()
WIDE = LengthBins.up_to(300)

outputs = st.lists(
    st.floats(min_value=-8, max_value=8), min_size=len(WIDE), max_size=len(WIDE)
).map(lambda x: torch.tensor(x, dtype=torch.float64))


def spelled_out(distribution):
    """Every whole length and its probability, in float64."""
    edges = distribution.bins.edges
    counts = torch.tensor(edges).diff()
    p = distribution.outputs.double().softmax(-1) / counts
    return torch.arange(1, edges[-1]).double(), p.repeat_interleave(counts, dim=-1)


def certain(length, bins=WIDE):
    """The distribution that is sure of the bin of `length`."""
    sure = torch.full((len(bins),), -1e4)
    sure[bins.index(torch.tensor(float(length)))] = 0.0
    return bins.of(sure)


def test_by_hand():
    d = BINS.of(HALF)
    assert_close(d.mean(), torch.tensor(0.5 + 0.25 * 2.5 + 0.25 * 5.5))
    open_u = 1 - sum(2.0**-n for n in range(4, 8)) / 4
    u = 0.5 * 0.5 + 0.25 * (0.75 + 0.875) / 2 + 0.25 * open_u
    assert_close(d.u(0.5), torch.tensor(u))
    at_most = {-1.0: 0.0, 0.0: 0.0, 1.0: 0.5, 2.0: 0.625, 3.0: 0.75, 4.0: 0.8125, 9.0: 1.0}
    for n, expected in at_most.items():
        assert_close(d.at_most(n), torch.tensor(expected))
        assert_close(d.longer_than(n), torch.tensor(1.0 - expected))
    quantiles = {0.0: 1, 0.5: 1, 0.51: 2, 0.625: 2, 0.7: 3, 0.75: 3, 0.8: 4, 0.9: 6, 1.0: 7}
    assert {q: int(d.quantile(q)) for q in quantiles} == quantiles
    assert_close(torch.stack(d.pit(torch.tensor(3.0))), torch.tensor([0.625, 0.75]))


def test_losses_by_hand():
    d = BINS.of(HALF.expand(6, 3))
    lengths = torch.tensor([1.0, 3.0, 400.0, 0.0, 2.0, 5.0])
    censored = torch.tensor([False, False, False, True, True, True])
    # Longer than 2: half of the bin of 2 and 3. Longer than 5: the open bin counts whole.
    p = torch.tensor([0.5, 0.25, 0.25, 1.0, 0.375, 0.25])
    assert_close(d.nll(lengths, censored), -p.log())
    assert_close(d.pinball(torch.tensor([4.0] * 6), 0.75)[0], torch.tensor(0.75))
    assert_close(d.pinball(torch.tensor([2.0] * 6), 0.75)[0], torch.tensor(0.25))


def test_singles_then_log_spaced_then_open():
    assert WIDE.edges[:10] == tuple(range(1, 11))
    assert WIDE.edges[-2] > 300
    ratios = [b / a for a, b in zip(WIDE.edges[20:], WIDE.edges[21:], strict=False)]
    assert all(1.1 < r < 1.14 for r in ratios)
    for b in range(len(WIDE)):
        first, last = WIDE.edges[b], WIDE.edges[b + 1] - 1
        assert WIDE.index(torch.tensor([first, last])).tolist() == [b, b]
    assert WIDE.index(torch.tensor(10_000)).item() == len(WIDE) - 1
    assert bins_of(list(WIDE.edges)) == WIDE and bins_of(None) is None
    assert len(LengthBins.up_to(1)) == 9 + 1


@given(o=outputs, gamma=st.floats(min_value=0.5, max_value=0.9999))
@settings(deadline=None, max_examples=60)
def test_u_is_the_expectation_at_any_gamma(o, gamma):
    d = WIDE.of(o)
    lengths, p = spelled_out(d)
    u = (p * length_to_u(lengths, gamma=gamma)).sum()
    assert_close(d.u(gamma), u, rtol=1e-9, atol=1e-12)
    assert_close(d.mean(), (p * lengths).sum(), rtol=1e-9, atol=0.0)


@given(o=outputs, length=st.integers(min_value=1, max_value=330))
@settings(deadline=None, max_examples=60)
def test_probabilities_and_scores_are_those_of_whole_lengths(o, length):
    d, true = WIDE.of(o), torch.tensor(float(length))
    lengths, p = spelled_out(d)
    below = p.cumsum(-1)
    assert_close(d.at_most(true), below[length - 1], rtol=1e-9, atol=1e-12)
    assert_close(d.crps(true), ((below - (lengths >= length).double()) ** 2).sum())
    if length < WIDE.edges[-2]:
        exact = d.nll(true, torch.tensor(True))
        assert_close(exact, -(1 - below[length - 1]).log(), rtol=1e-7, atol=1e-9)


@given(o=outputs, levels=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@settings(deadline=None, max_examples=60)
def test_quantiles_rise_and_invert_the_distribution(o, levels):
    d, (low, high) = WIDE.of(o), sorted(levels)
    assert d.quantile(low) <= d.quantile(high)
    q = d.quantile(high)
    assert d.at_most(q) >= high - 1e-6
    assert q == 1 or d.at_most(q - 1) <= high + 1e-6


@given(length=st.integers(min_value=1, max_value=9), gamma=st.floats(0.5, 0.9999))
@settings(deadline=None, max_examples=30)
def test_certainty_of_a_single_length_gives_it_back(length, gamma):
    d = certain(length)
    assert d.mean() == length and {int(d.quantile(q)) for q in (0.01, 0.5, 0.99)} == {length}
    assert_close(d.u(gamma), length_to_u(torch.tensor(float(length)), gamma=gamma).float())
    assert d.crps(torch.tensor(float(length))).item() == pytest.approx(0.0, abs=1e-5)
    assert d.crps(torch.tensor(length + 3.0)).item() == pytest.approx(3.0)  # the absolute error
    assert d.nll(torch.tensor(float(length))).item() == pytest.approx(0.0, abs=1e-6)


def test_logit_is_exact_where_u_is_one():
    """At gamma .9 a length of 5,000 has u = 1 in any float: the logit still knows it."""
    bins = LengthBins((1, 2, 5000, 5001, 6000))
    z = certain(5000, bins).logit(0.9)
    assert_close(z, length_to_logit(torch.tensor(5000.0), gamma=0.9), rtol=1e-6, atol=0.0)
    assert logit_to_length(z, gamma=0.9).item() == pytest.approx(5000, rel=1e-6)


def test_true_distribution_has_the_best_scores_and_is_calibrated():
    """Of outcomes drawn from p, p itself scores best; its intervals cover what they say."""
    generator = torch.Generator().manual_seed(0)
    o = torch.randn(len(WIDE), generator=generator)
    lengths, p = spelled_out(WIDE.of(o))
    drawn = lengths[torch.multinomial(p, 20_000, replacement=True, generator=generator)]
    right = WIDE.of(o.expand(20_000, -1))
    wrong = WIDE.of((o + torch.randn(len(WIDE), generator=generator)).expand(20_000, -1))
    assert right.crps(drawn).mean() < wrong.crps(drawn).mean()
    assert right.nll(drawn).mean() < wrong.nll(drawn).mean()
    assert right.pinball(drawn, 0.9).mean() < wrong.pinball(drawn, 0.9).mean()
    for share in (0.5, 0.9):
        assert right.coverage(drawn, share).mean().item() == pytest.approx(share, abs=0.01)


def test_coverage_of_a_certain_length_is_nominal():
    """All of the probability is at one length: the coin alone decides."""
    assert_close(certain(5).coverage(torch.tensor(5.0), 0.9), torch.tensor(0.9))
    assert certain(5).coverage(torch.tensor(7.0), 0.9) == 0.0


def test_censored_likelihood_finds_the_share_beyond_the_limit():
    """Fitted to four lengths, one of them only known to exceed 3: a quarter is put there."""
    o = torch.zeros(3, requires_grad=True)
    lengths = torch.tensor([1.0, 1.0, 2.0, 3.0])
    censored = torch.tensor([False, False, False, True])
    optimizer = torch.optim.Adam([o], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        BINS.of(o.expand(4, 3)).nll(lengths, censored).mean().backward()
        optimizer.step()
    assert_close(o.detach().softmax(-1), HALF.exp(), rtol=0.0, atol=2e-3)


def test_gradients_are_finite():
    o = torch.tensor([[80.0, -80.0, 0.0]] * 3, requires_grad=True)
    d = BINS.of(o)
    censored = torch.tensor([True, True, False])
    total = d.nll(torch.tensor([1.0, 3.0, 3.0]), censored).sum() + d.logit(0.999).sum()
    (total + d.mean().sum()).backward()
    assert o.grad.isfinite().all()


def test_shapes_and_half_precision():
    d = BINS.of(torch.zeros(2, 5, 3, dtype=torch.bfloat16))
    assert d.mean().shape == d.quantile(0.5).shape == d.u(0.9).shape == (2, 5)
    assert d.mean().dtype == torch.float32
    assert d[:, 0].mean().shape == (2,)


def test_read_outputs_gives_the_logit_of_either_head():
    z = torch.randn(4)
    assert read_outputs(z, bins=None, gamma=None) is z
    assert_close(read_outputs(HALF, bins=BINS, gamma=0.5), BINS.of(HALF).logit(0.5))
    with pytest.raises(ValueError, match=r"gamma is missing.*Give one"):
        read_outputs(HALF, bins=BINS, gamma=None)


@pytest.mark.parametrize("edges", [(2, 3, 4), (1, 3, 3), (1, 2), ()])
def test_edges_must_rise_from_one(edges):
    with pytest.raises(ValueError, match=r"rising edges from 1 on.*up_to"):
        LengthBins(edges)


@pytest.mark.parametrize("longest", [0, math.inf, math.nan])
def test_longest_must_be_a_length(longest):
    with pytest.raises(ValueError, match="longest response of at least 1 token"):
        LengthBins.up_to(longest)


def test_number_of_outputs_is_that_of_bins():
    with pytest.raises(ValueError, match=r"3 bins need as many outputs.*\(2, 4\)"):
        BINS.of(torch.zeros(2, 4))
