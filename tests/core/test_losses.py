"""Elementwise losses: by hand, gradients, one-sidedness in length, bad input."""

import math

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import (
    TARGETS,
    binary_cross_entropy,
    censor,
    censored_huber,
    censored_squared_error,
    huber,
    label,
    logit_to_value,
    predict,
    squared_error,
)

PREDICTION = torch.tensor([[-0.5, -0.2, -0.9], [0.0, -1.0, -0.4]])
LABEL = torch.tensor([[-0.4, -0.2, -0.7], [-1.0, -0.5, -0.8]])


def test_squared_error_by_hand():
    expected = torch.tensor([[0.01, 0.0, 0.04], [1.0, 0.25, 0.16]])
    assert_close(squared_error(PREDICTION, LABEL), expected)


def test_huber_by_hand():
    expected = torch.tensor([[0.005, 0.0, 0.02], [0.255, 0.105, 0.075]])
    assert_close(huber(PREDICTION, LABEL, delta=0.3), expected)
    # Values differ by less than one: with delta 1 Huber is half the squared error.
    assert_close(huber(PREDICTION, LABEL), squared_error(PREDICTION, LABEL) / 2)


def test_huber_gradient_is_clipped():
    prediction = torch.tensor([-3.0, -0.1, 0.2, 5.0], requires_grad=True)
    huber(prediction, torch.zeros(4), delta=0.5).sum().backward()
    assert_close(prediction.grad, torch.tensor([-0.5, -0.1, 0.2, 0.5]))


def test_binary_cross_entropy_by_hand():
    logit, value = torch.tensor([0.0, math.log(3.0)]), torch.tensor([-0.25, -0.5])
    # sigmoid = .5 and .75: -u ln s - (1 - u) ln(1 - s)
    expected = torch.tensor([math.log(2), -0.5 * math.log(0.75) - 0.5 * math.log(0.25)])
    assert_close(binary_cross_entropy(logit, value), expected)


def test_binary_cross_entropy_gradient_does_not_vanish():
    logit = torch.tensor([-40.0, 0.0, 40.0], requires_grad=True)
    value = torch.tensor([-0.9, -0.5, -0.1])
    binary_cross_entropy(logit, value).sum().backward()
    assert_close(logit.grad, torch.sigmoid(logit.detach()) + value)
    logit.grad = None
    squared_error(logit_to_value(logit), value).sum().backward()
    assert logit.grad.abs().max() < 1e-15


def test_losses_have_the_same_optimum():
    """Cross entropy and squared error both fit the mean value of mixed labels."""
    labels = torch.tensor([-0.2, -0.9, -0.4], dtype=torch.float64)
    logit = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    cross = binary_cross_entropy(logit[:, None].expand(-1, 3), labels.expand(4001, -1)).sum(1)
    square = squared_error(logit_to_value(logit)[:, None].expand(-1, 3), labels.expand(4001, -1))
    for loss in (cross, square.sum(1)):
        assert_close(logit_to_value(logit[loss.argmin()]), labels.mean(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("target", TARGETS)
def test_censored_loss_follows_the_order_of_lengths(target):
    """Label 50 tokens: at 40 predicted it counts, at 60 only where the label is exact."""
    settings = {"target": target, "gamma": 0.99, "length_scale": 100.0}
    prediction = label(torch.tensor([40.0, 60.0, 40.0, 60.0, 50.0]), **settings)
    bound = label(torch.full((5,), 50.0), **settings)
    censored = torch.tensor([True, True, False, False, True])
    for one_sided, plain in ((censored_squared_error, squared_error), (censored_huber, huber)):
        loss = one_sided(prediction, bound, censored, target=target)
        expected = plain(prediction, bound) * torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
        assert_close(loss, expected)
        assert (loss[[0, 2, 3]] > 0).all()


def test_nothing_censored_changes_nothing():
    none = torch.zeros_like(LABEL, dtype=torch.bool)
    plain = squared_error(PREDICTION, LABEL)
    assert torch.equal(censored_squared_error(PREDICTION, LABEL, none), plain)
    plain = huber(PREDICTION, LABEL, delta=0.1)
    assert torch.equal(censored_huber(PREDICTION, LABEL, none, delta=0.1), plain)


def test_censor_makes_any_loss_one_sided():
    logit = torch.tensor([-1.0, 1.0], requires_grad=True)
    value = torch.tensor([-0.5, -0.5])
    loss = binary_cross_entropy(logit, value)
    one_sided = censor(loss, predict(logit), value, torch.tensor([True, True]))
    one_sided.sum().backward()
    assert one_sided[0] == loss[0] and one_sided[1] == 0
    assert logit.grad[0] < 0 and logit.grad[1] == 0  # only the short one is pushed longer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    prediction = PREDICTION.to(dtype)
    for loss in (squared_error, huber, binary_cross_entropy):
        assert loss(prediction, LABEL.to(dtype)).dtype == expected


@pytest.mark.parametrize("target", TARGETS)
def test_gradients_are_finite_at_extreme_logits(target):
    logit = torch.tensor([-80.0, -1.0, 0.0, 1.0, 80.0], requires_grad=True)
    settings = {"target": target, "gamma": 0.99995, "length_scale": 1e5}
    goal = label(torch.tensor([1e5, 1.0, 5.0, 1e5, 1.0]), **settings)
    censored = torch.tensor([True, False, True, False, True])
    censored_squared_error(predict(logit, target=target), goal, censored, target=target).sum()
    loss = censored_huber(predict(logit, target=target), goal, censored, target=target)
    loss.sum().backward()
    assert logit.grad.isfinite().all()


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: squared_error(x, y),
        lambda x, y: huber(x, y),
        lambda x, y: binary_cross_entropy(x, y),
        lambda x, y: censored_squared_error(x, y, torch.ones_like(x).bool()),
        lambda x, y: censored_huber(x, y, torch.ones_like(x).bool()),
        lambda x, y: censored_squared_error(x, x, torch.ones_like(y).bool()),
        lambda x, y: censor(y, x, x, torch.ones_like(x).bool()),
    ],
)
def test_shapes_are_never_broadcast(call):
    with pytest.raises(ValueError, match=r"same shape.*\(2, 3\).*\(2, 1\)|\(2, 1\).*\(2, 3\)"):
        call(torch.zeros(2, 3), torch.zeros(2, 1))


def test_bad_input():
    with pytest.raises(ValueError, match="delta must be positive, got 0.0"):
        huber(PREDICTION, LABEL, delta=0.0)
    with pytest.raises(ValueError, match="unknown target 'lengths'"):
        censored_squared_error(PREDICTION, LABEL, LABEL < 0, target="lengths")
