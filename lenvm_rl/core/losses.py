"""How wrong is a prediction, token by token?

Every loss is elementwise: reduce it with `lenvm_rl.core.masked`. `prediction` and `label` are in
the space of one parameterisation of `lenvm_rl.core.targets`, of one shape, in float32 or better.

A censored label is a bound: the completion was cut, so its remaining length is only known to be
longer than what was seen. Its loss is one-sided in the order of *lengths*: none where the
prediction is already longer than what was seen.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_same_shape
from lenvm_rl.core.targets import check_target


def squared_error(prediction: Tensor, label: Tensor) -> Tensor:
    """`(p - y)**2`, without a factor 1/2 (LenVM eq. 9). Any shape, elementwise."""
    error = _error(prediction, label)
    return error * error


def huber(prediction: Tensor, label: Tensor, *, delta: float = 1.0) -> Tensor:
    """Squared near zero and linear beyond, elementwise, with `e = p - y`:

        e**2 / 2                      |e| <= delta
        delta * (|e| - delta / 2)     |e| >  delta

    Values lie in [-1, 0], so with delta >= 1 and target `return` this is half the squared error.

    Raises:
        ValueError: shapes differ, delta not positive.
    """
    if not delta > 0.0:
        raise ValueError(f"delta must be positive, got {delta}: use 1.0 or squared_error")
    size = _error(prediction, label).abs()
    return torch.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta))


def binary_cross_entropy(logit: Tensor, value: Tensor) -> Tensor:
    """Cross entropy between the discounted lengths `sigmoid(z)` and `u = -V`, elementwise.

        softplus(z) - u z

    An alternative to `squared_error` for target `return`: the same optimum `sigmoid(z) = E[u]`,
    but the gradient `sigmoid(z) - u` in z does not vanish where the sigmoid is flat.

    Args:
        logit: raw head output, any shape.
        value: label V in [-1, 0], same shape.
    """
    check_same_shape(logit=logit, value=value)
    z, v = as_float(logit, name="logit"), as_float(value, name="value")
    return F.binary_cross_entropy_with_logits(z, (-v).to(z.dtype), reduction="none")


def censor(
    loss: Tensor, prediction: Tensor, label: Tensor, censored: Tensor, *, target: str = "return"
) -> Tensor:
    """Make any elementwise loss one-sided at censored labels.

        0      where censored and the prediction is at least as long as the label
        loss   elsewhere

    Args:
        loss: elementwise loss of `prediction` against `label`, any shape.
        prediction: in target space, same shape.
        label: in target space, same shape; a lower bound of the length where censored.
        censored: bool, same shape.
        target: parameterisation, one of `TARGETS`: it decides which direction is longer
            (values fall with length, the other three rise).
    """
    check_target(target)
    check_same_shape(loss=loss, prediction=prediction, label=label, censored=censored)
    longer = prediction <= label if target == "return" else prediction >= label
    return torch.where(censored.bool() & longer, torch.zeros_like(loss), loss)


def censored_squared_error(
    prediction: Tensor, label: Tensor, censored: Tensor, *, target: str = "return"
) -> Tensor:
    """`squared_error`, one-sided where `censored`: see `censor`."""
    return censor(squared_error(prediction, label), prediction, label, censored, target=target)


def censored_huber(
    prediction: Tensor,
    label: Tensor,
    censored: Tensor,
    *,
    delta: float = 1.0,
    target: str = "return",
) -> Tensor:
    """`huber`, one-sided where `censored`: see `censor`."""
    loss = huber(prediction, label, delta=delta)
    return censor(loss, prediction, label, censored, target=target)


def _error(prediction: Tensor, label: Tensor) -> Tensor:
    check_same_shape(prediction=prediction, label=label)
    return as_float(prediction, name="prediction") - as_float(label, name="label")
