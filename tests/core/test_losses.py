"""Elementwise losses: by hand, gradients, one-sidedness in length, bad input."""

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import (
    TARGETS,
    censored_squared_error,
    label,
    predict,
    squared_error,
)

PREDICTION = torch.tensor([[-0.5, -0.2, -0.9], [0.0, -1.0, -0.4]])
LABEL = torch.tensor([[-0.4, -0.2, -0.7], [-1.0, -0.5, -0.8]])


def test_squared_error_by_hand():
    expected = torch.tensor([[0.01, 0.0, 0.04], [1.0, 0.25, 0.16]])
    assert_close(squared_error(PREDICTION, LABEL), expected)


@pytest.mark.parametrize("target", TARGETS)
def test_censored_loss_follows_the_order_of_lengths(target):
    """Label 50 tokens: at 40 predicted it counts, at 60 only where the label is exact."""
    settings = {"target": target, "gamma": 0.99, "length_scale": 100.0}
    prediction = label(torch.tensor([40.0, 60.0, 40.0, 60.0, 50.0]), **settings)
    bound = label(torch.full((5,), 50.0), **settings)
    censored = torch.tensor([True, True, False, False, True])
    loss = censored_squared_error(prediction, bound, censored, target=target)
    expected = squared_error(prediction, bound) * torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    assert_close(loss, expected)
    assert (loss[[0, 2, 3]] > 0).all()


def test_nothing_censored_changes_nothing():
    none = torch.zeros_like(LABEL, dtype=torch.bool)
    plain = squared_error(PREDICTION, LABEL)
    assert torch.equal(censored_squared_error(PREDICTION, LABEL, none), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    prediction = PREDICTION.to(dtype)
    assert squared_error(prediction, LABEL.to(dtype)).dtype == expected


@pytest.mark.parametrize("target", TARGETS)
def test_gradients_are_finite_at_extreme_logits(target):
    logit = torch.tensor([-80.0, -1.0, 0.0, 1.0, 80.0], requires_grad=True)
    settings = {"target": target, "gamma": 0.99995, "length_scale": 1e5}
    goal = label(torch.tensor([1e5, 1.0, 5.0, 1e5, 1.0]), **settings)
    censored = torch.tensor([True, False, True, False, True])
    loss = censored_squared_error(predict(logit, target=target), goal, censored, target=target)
    loss.sum().backward()
    assert logit.grad.isfinite().all()


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: squared_error(x, y),
        lambda x, y: censored_squared_error(x, y, torch.ones_like(x).bool()),
        lambda x, y: censored_squared_error(x, x, torch.ones_like(y).bool()),
    ],
)
def test_shapes_are_never_broadcast(call):
    with pytest.raises(ValueError, match=r"same shape.*\(2, 3\).*\(2, 1\)|\(2, 1\).*\(2, 3\)"):
        call(torch.zeros(2, 3), torch.zeros(2, 1))


def test_bad_input():
    with pytest.raises(ValueError, match="unknown target 'lengths'"):
        censored_squared_error(PREDICTION, LABEL, LABEL < 0, target="lengths")
