"""Keys of a predicted distribution: by hand, against the sum over whole lengths, laws."""

import math

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import LengthBins, gittins, tail_inflated, tail_mean
from tests.core.test_distribution import BINS, HALF, WIDE, certain, spelled_out

RANDOM = WIDE.of(2 * torch.randn(20, len(WIDE), generator=torch.Generator().manual_seed(0)))


def test_tail_by_hand():
    d = BINS.of(HALF)  # half 1; 2 and 3 an eighth each; 4 to 7 a sixteenth each
    assert_close(tail_mean(d, 0.75), torch.tensor(5.5))
    assert_close(tail_mean(d, 0.875), torch.tensor(6.5))  # 6 and 7
    assert_close(tail_mean(d, 0.0), d.mean())
    assert_close(tail_inflated(d, level=0.75, weight=0.5), d.mean() + 0.5 * 5.5)
    with pytest.raises(ValueError, match="level must be in"):
        tail_mean(d, 1.0)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_tail_is_what_lies_above_the_level(level):
    lengths, p = spelled_out(RANDOM)
    above = (p.cumsum(-1) - level).clamp(min=0).minimum(p)
    expected = (above * lengths).sum(-1) / above.sum(-1)
    assert_close(tail_mean(RANDOM, level).double(), expected, rtol=2e-2, atol=1e-3)
    assert (tail_mean(RANDOM, level) >= RANDOM.mean() - 1e-3).all()


def index_of_lengths(p, t):
    """The definition, over every whole length D."""
    best = math.inf
    for d in range(t + 1, len(p) + 1):
        ends = p[t:d].sum().item()
        spent = sum(x.item() * (min(n, d) - min(n, t)) for n, x in enumerate(p, start=1))
        if ends > 1e-12:
            best = min(best, spent / ends)
    return best


def test_gittins_by_hand():
    bins = LengthBins((1, 2, 3, 11, 12))
    d = bins.of(torch.tensor([0.5, 1e-9, 1e-9, 0.5]).log())  # 1 or 11
    # Try one token: 1 spent, half of them end. Go on to the end: 6 spent for each.
    assert_close(gittins(d), torch.tensor(2.0), rtol=1e-4, atol=0)
    # After it, it is the long one.
    assert_close(gittins(d, 1.0), torch.tensor(10.0), rtol=1e-4, atol=0)
    assert gittins(d, 11.0).isinf()


def test_gittins_is_the_least_ratio_over_the_ends_of_bins():
    single = LengthBins(tuple(range(1, 14)))
    outputs = torch.randn(6, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    d = single.of(outputs)
    for t in (0, 3, 9):
        expected = [index_of_lengths(p, t) for p in d.probabilities]
        assert_close(gittins(d, float(t)), torch.tensor(expected).double(), rtol=1e-6, atol=0)


def test_a_sure_length_is_shortest_remaining_first():
    for length in (1, 5, 9):
        d = certain(length)
        assert_close(gittins(d), torch.tensor(float(length)))
        assert_close(gittins(d, float(length - 1)), torch.tensor(1.0))
        assert_close(tail_inflated(d, weight=1.0), torch.tensor(2.0 * length))


def test_an_index_is_at_most_the_mean_and_at_least_one():
    index = gittins(RANDOM)
    assert (index <= RANDOM.mean() + 1e-3).all() and (index >= 1.0 - 1e-4).all()
    shaped = gittins(WIDE.of(RANDOM.outputs.reshape(4, 5, -1)), torch.zeros(4, 5))
    assert_close(shaped.flatten(), index)
