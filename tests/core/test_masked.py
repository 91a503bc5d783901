"""Masked reductions: by hand, micro-batches that add up to the whole, junk under the mask."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lenvm_rl.core import masked_mean, masked_sum, squared_error

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
MASK = torch.tensor([[1, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_by_hand(dtype):
    assert masked_sum(X, MASK.to(dtype)) == 9.0
    assert masked_mean(X, MASK.to(dtype), denom=3) == 3.0
    assert masked_mean(X, MASK.to(dtype), denom=MASK.sum()) == 3.0
    assert masked_mean(X, MASK.to(dtype), denom=90).item() == pytest.approx(0.1)


def test_weights():
    assert masked_sum(X, MASK * 0.5) == 4.5


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_junk_under_the_mask_has_neither_value_nor_gradient(junk):
    x = X.masked_fill(MASK == 0, junk).requires_grad_()
    for mask in (MASK.bool(), MASK.float()):
        x.grad = None
        mean = masked_mean(x, mask, denom=3)
        mean.backward()
        assert mean == 3.0
        assert_close(x.grad, MASK / 3)


def test_empty_mask_is_zero_and_trains_nothing():
    x = X.clone().requires_grad_()
    mean = masked_mean(x, torch.zeros_like(X), denom=7)
    mean.backward()
    assert mean == 0.0 and (x.grad == 0).all()


def test_half_precision_is_summed_in_float32():
    # In bfloat16 the sum would stop at 256.
    ones = torch.ones(1, 1000, dtype=torch.bfloat16)
    assert masked_sum(ones, torch.ones(1, 1000)) == 1000.0


@given(
    lengths=st.lists(st.integers(0, 12), min_size=2, max_size=10).filter(any),
    cuts=st.sets(st.integers(1, 9), max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_micro_batches_add_up_to_the_whole(lengths, cuts):
    """Loss and gradient do not depend on how the global batch was split."""
    generator = torch.Generator().manual_seed(len(lengths))
    goal = -torch.rand(len(lengths), 12, generator=generator, dtype=torch.float64)
    mask = torch.arange(12)[None, :] < torch.tensor(lengths)[:, None]
    prediction = torch.full_like(goal, -0.5, requires_grad=True)
    whole = masked_mean(squared_error(prediction, goal), mask, denom=mask.sum())
    whole.backward()
    gradient, prediction.grad = prediction.grad, None

    edges = [0, *sorted(c for c in cuts if c < len(lengths)), len(lengths)]
    total = 0.0
    for start, stop in zip(edges, edges[1:], strict=False):
        rows = slice(start, stop)
        loss = squared_error(prediction[rows], goal[rows])
        part = masked_mean(loss, mask[rows], denom=int(mask.sum()))
        part.backward()
        total += part.item()
    assert total == pytest.approx(whole.item(), rel=1e-12)
    assert_close(prediction.grad, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("denom", [0, 0.0, -1, math.nan])
def test_bad_denominator(denom):
    with pytest.raises(ValueError, match=f"denom must be positive, got {denom}"):
        masked_mean(X, MASK, denom=denom)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"same shape, got x \(2, 3\), mask \(2, 1\)"):
        masked_sum(X, MASK[:, :1])
    with pytest.raises(ValueError, match="same shape"):
        masked_mean(X, MASK[:1], denom=3)
