"""Targets of the head: what it predicts, and the label it is trained against.

Parameterisations (LenVM section 5.1) that differ only in the map from logit to prediction
and in the label; `l` is the remaining length in tokens, `scale` is `length_scale`:

    target               prediction p     label y               length of a prediction
    return               -sigmoid(z)      -(1 - gamma**l)       softplus(z) / -ln gamma
    length               softplus(z)      l / scale             scale p
    normalized_length    sigmoid(z)       min(l / scale, 1)     scale p
    log_length           softplus(z)      ln(1 + l)             exp(p) - 1 = exp(z)
    distribution         as `return`, with z = z_gamma of K outputs (`distribution`), for any gamma

`return` is the paper's method, the three after it are its ablations. `normalized_length`
saturates: lengths above the scale share one label, so choose the scale at or above the longest
response.

A distribution is trained on lengths themselves (`LengthDistribution.nll`); here it is read.

`gamma` is needed by `return` and `distribution`, `length_scale` by `length` and
`normalized_length`; where it is not needed it may be given and is ignored.
"""

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_choice
from lenvm_rl.core.values import (
    length_to_value,
    logit_to_length,
    logit_to_value,
    softplus,
    value_to_length,
)

DISTRIBUTION = "distribution"
TARGETS = ("return", "length", "normalized_length", "log_length", DISTRIBUTION)
OF_VALUES = ("return", DISTRIBUTION)
"""Targets whose logit z is that of the mean value: V = -sigmoid(z)."""


def check_target(target: str) -> str:
    """Return `target` when it is one of `TARGETS`; raise ValueError that lists them otherwise."""
    return check_choice(target, name="target", known=TARGETS)


def predict(logit: Tensor | float, *, target: str = "return") -> Tensor:
    """Prediction in target space of a raw head output.

    Args:
        logit: raw head output z, any shape.
        target: one of `TARGETS`.
    Returns:
        Same shape, at least float32. Ranges: return and distribution [-1, 0], normalized_length
        [0, 1], length and log_length [0, inf).
    """
    z = as_float(logit, name="logit")
    check_target(target)
    if target in OF_VALUES:
        return logit_to_value(z)
    if target == "normalized_length":
        return torch.sigmoid(z)
    return softplus(z)


def label(
    length: Tensor | float,
    *,
    target: str = "return",
    gamma: float | None = None,
    length_scale: float | None = None,
) -> Tensor:
    """Training label in target space of a remaining length.

    Args:
        length: remaining tokens >= 0, any shape; counts the token about to be emitted.
        target: one of `TARGETS`.
        gamma: per-token discount in (0, 1), for `return` and `distribution`.
        length_scale: tokens per unit, > 0, for `length` and `normalized_length`.
    Returns:
        Same shape, at least float32, in the range of `predict`.
    Raises:
        ValueError: unknown target, missing or illegal gamma or length_scale.
    """
    check_target(target)
    if target in OF_VALUES:
        return length_to_value(length, gamma=_need_gamma(gamma))
    tokens = as_float(length, name="length", low=0.0)
    if target == "log_length":
        return torch.log1p(tokens)
    scaled = tokens / _need_scale(length_scale, target)
    return scaled.clamp(max=1.0) if target == "normalized_length" else scaled


def predicted_length(
    logit: Tensor | float,
    *,
    target: str = "return",
    gamma: float | None = None,
    length_scale: float | None = None,
) -> Tensor:
    """Remaining tokens that a raw head output stands for: the inverse of `label`, unsaturated.

    Arguments and errors as for `label`. Returns tokens >= 0, same shape as `logit`.
    """
    check_target(target)
    if target in OF_VALUES:
        return logit_to_length(logit, gamma=_need_gamma(gamma))
    z = as_float(logit, name="logit")
    if target == "log_length":
        return torch.exp(z)  # exp(softplus(z)) - 1, without the cancellation
    return predict(z, target=target) * _need_scale(length_scale, target)


def length_of_prediction(
    prediction: Tensor | float,
    *,
    target: str = "return",
    gamma: float | None = None,
    length_scale: float | None = None,
) -> Tensor:
    """Remaining tokens of a prediction in target space, for callers that have no logit.

    `predicted_length` is the exact form: a `return` prediction is saturated beyond
    `resolution_limit(from_logit=False)` and then gives inf. Arguments and errors as for `label`.
    """
    check_target(target)
    if target in OF_VALUES:
        return value_to_length(prediction, gamma=_need_gamma(gamma))
    p = as_float(prediction, name="prediction")
    return torch.expm1(p) if target == "log_length" else p * _need_scale(length_scale, target)


def value_of_logit(
    logit: Tensor | float,
    *,
    target: str = "return",
    gamma: float | None = None,
    length_scale: float | None = None,
) -> Tensor:
    """Value V in [-1, 0] of a raw head output of any target, so that one evaluation serves all.

    For `return` and `distribution` this is the prediction itself, an estimate of E[G]. The others
    estimate a transformed length, whose value `-(1 - gamma**l)` is not that expectation (LenVM
    appendix F).

    Args:
        gamma: always needed except for `return` and `distribution`.
    """
    check_target(target)
    if target in OF_VALUES:
        return logit_to_value(logit)
    tokens = predicted_length(logit, target=target, length_scale=length_scale)
    return length_to_value(tokens, gamma=_need_gamma(gamma))


def _need_gamma(gamma: float | None) -> float:
    if gamma is None:
        raise ValueError("gamma is missing: give the per-token discount in (0, 1), e.g. gamma=.997")
    return gamma


def _need_scale(length_scale: float | None, target: str) -> float:
    if length_scale is None or not 0.0 < length_scale < float("inf"):
        raise ValueError(
            f"target {target!r} needs a positive length_scale in tokens, got {length_scale}: "
            f"use the longest response of the data"
        )
    return length_scale
