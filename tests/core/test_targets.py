"""The parameterisations: maps by hand, inverses, limits, shared evaluation, bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lenvm_rl.core import (
    TARGETS,
    check_target,
    label,
    length_of_prediction,
    length_to_value,
    predict,
    predicted_length,
    value_of_logit,
)

SETTINGS = {"gamma": 0.5, "length_scale": 10.0}


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_predictions_by_hand():
    z = 0.3
    expected = {
        "return": -sigmoid(z),
        "length": softplus(z),
        "normalized_length": sigmoid(z),
        "log_length": softplus(z),
        "distribution": -sigmoid(z),
    }
    for target in TARGETS:
        assert predict(torch.tensor([z]), target=target).item() == pytest.approx(expected[target])
    assert_close(predict(torch.tensor([z])), predict(torch.tensor([z]), target="return"))


def test_labels_by_hand():
    length = torch.tensor([[1, 2], [5, 20]])
    expected = {
        "return": [[-0.5, -0.75], [-0.96875, -1.0 + 2.0**-20]],
        "length": [[0.1, 0.2], [0.5, 2.0]],
        "normalized_length": [[0.1, 0.2], [0.5, 1.0]],  # 20 tokens saturate at scale 10
        "log_length": [[math.log(2), math.log(3)], [math.log(6), math.log(21)]],
        "distribution": [[-0.5, -0.75], [-0.96875, -1.0 + 2.0**-20]],
    }
    for target in TARGETS:
        actual = label(length, target=target, **SETTINGS)
        assert_close(actual, torch.tensor(expected[target]))


def test_predicted_lengths_by_hand():
    z = 0.3
    expected = {
        "return": softplus(z) / math.log(2),
        "length": 10 * softplus(z),
        "normalized_length": 10 * sigmoid(z),
        "log_length": math.exp(z),
        "distribution": softplus(z) / math.log(2),
    }
    for target in TARGETS:
        actual = predicted_length(torch.tensor([z]), target=target, **SETTINGS)
        assert actual.item() == pytest.approx(expected[target], rel=1e-6)


@given(z=st.floats(min_value=-8, max_value=8), gamma=st.floats(min_value=0.9, max_value=0.9999))
@settings(deadline=None, max_examples=100)
@pytest.mark.parametrize("target", TARGETS)
def test_label_inverts_predicted_length(target, z, gamma):
    arguments = {"target": target, "gamma": gamma, "length_scale": 300.0}
    logit = torch.tensor([z], dtype=torch.float64)
    length = predicted_length(logit, **arguments)
    assert_close(label(length, **arguments), predict(logit, target=target), rtol=1e-9, atol=1e-12)
    again = length_of_prediction(predict(logit, target=target), **arguments)
    assert_close(again, length, rtol=1e-9, atol=1e-12)
    value = value_of_logit(logit, **arguments)
    assert_close(value, length_to_value(length, gamma=gamma), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_100k_tokens_in_float32(target):
    """Every target can hold 1 to 100,000 tokens and be read back from its logit."""
    length = torch.tensor([1.0, 10.0, 1e3, 99_999.0])
    gamma, scale = 0.9998, 100_000.0
    logit = {
        "return": lambda n: torch.log(torch.expm1(n * -math.log(gamma))),
        "length": lambda n: torch.log(torch.expm1(n / scale)),
        "normalized_length": lambda n: torch.logit(n / scale),
        "log_length": torch.log,
        "distribution": lambda n: torch.log(torch.expm1(n * -math.log(gamma))),
    }[target](length.double())
    arguments = {"target": target, "gamma": gamma, "length_scale": scale}
    assert_close(predicted_length(logit.float(), **arguments), length, rtol=2e-6, atol=0.0)
    expected = predict(logit, target=target).float()
    assert_close(label(length, **arguments), expected, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("target", TARGETS)
def test_gradients_reach_extreme_logits(target):
    logit = torch.linspace(-60, 60, 121, requires_grad=True)
    arguments = {"target": target, "gamma": 0.999, "length_scale": 1000.0}
    (predict(logit, target=target).sum() + predicted_length(logit, **arguments).sum()).backward()
    assert logit.grad.isfinite().all()


def test_half_precision_logits_are_computed_in_float32():
    logit = torch.tensor([9.0], dtype=torch.bfloat16)
    for target in TARGETS:
        assert predict(logit, target=target).dtype == torch.float32
        assert predicted_length(logit, target=target, **SETTINGS).dtype == torch.float32


def test_settings_that_are_not_needed_are_ignored():
    length = torch.tensor([5.0])
    assert_close(
        label(length, target="log_length", gamma=0.9, length_scale=1.0),
        label(length, target="log_length"),
    )
    assert_close(value_of_logit(length), predict(length))


@pytest.mark.parametrize("function", [label, predicted_length, length_of_prediction])
def test_missing_settings(function):
    with pytest.raises(ValueError, match="gamma is missing"):
        function(torch.zeros(1), target="return", length_scale=10.0)
    for target in ("length", "normalized_length"):
        with pytest.raises(ValueError, match=f"'{target}' needs a positive length_scale.*None"):
            function(torch.zeros(1), target=target, gamma=0.9)
        for scale in (0.0, -5.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="needs a positive length_scale"):
                function(torch.zeros(1), target=target, length_scale=scale)


def test_value_of_logit_needs_gamma_for_lengths():
    with pytest.raises(ValueError, match="gamma is missing"):
        value_of_logit(torch.zeros(1), target="log_length")


def test_unknown_target_lists_the_known():
    message = "unknown target 'values': use one of return, length, normalized_length, log_length"
    with pytest.raises(ValueError, match=message):
        check_target("values")
    for call in (predict, label, predicted_length, length_of_prediction, value_of_logit):
        with pytest.raises(ValueError, match="unknown target"):
            call(torch.zeros(1), target="values")
