"""The training loss of a token, and its mean over the tokens that count.

`prediction` and `label` are in the space of one parameterisation of `lenvm_rl.core.targets`, of one
shape, in float32 or better. A censored label is a bound: the completion was truncated, so its
remaining length is only known to be longer than what was seen. Its loss is one-sided in the order
of *lengths*: none where the prediction is already longer than what was seen.

In a mean the denominator is always an argument. With the token count of the global batch as
`denom`, the results of micro-batches and of data-parallel workers add up to that of the whole
batch, so the loss and its gradient do not depend on how the batch was split (LenVM eq. 9).
"""

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_same_shape
from lenvm_rl.core.targets import OF_VALUES, check_target


def squared_error(prediction: Tensor, label: Tensor) -> Tensor:
    """`(p - y)**2`, without a factor 1/2 (LenVM eq. 9). Any shape, elementwise."""
    check_same_shape(prediction=prediction, label=label)
    error = as_float(prediction, name="prediction") - as_float(label, name="label")
    return error * error


def censored_squared_error(
    prediction: Tensor, label: Tensor, censored: Tensor, *, target: str = "return"
) -> Tensor:
    """`squared_error`, one-sided at censored labels.

        0            where censored and the prediction is at least as long as the label
        (p - y)**2   elsewhere

    Args:
        prediction: in target space, any shape.
        label: in target space, same shape; a lower bound of the length where censored.
        censored: bool, same shape.
        target: parameterisation, one of `TARGETS`: it decides which direction is longer
            (values fall with length, the other three rise).
    """
    check_target(target)
    loss = squared_error(prediction, label)
    check_same_shape(loss=loss, censored=censored)
    longer = prediction <= label if target in OF_VALUES else prediction >= label
    return torch.where(censored.bool() & longer, torch.zeros_like(loss), loss)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x * mask` over all elements.

    Where the mask is zero the content of `x` never matters, not even NaN or inf, and its gradient
    is zero.

    Args:
        x: any shape.
        mask: same shape; bool or 0/1, or non-negative weights.
    Returns:
        Scalar tensor, at least float32; 0 when nothing counts.
    """
    check_same_shape(x=x, mask=mask)
    values = torch.where(mask != 0, as_float(x, name="x"), 0.0)
    return (values if mask.dtype == torch.bool else values * mask).sum()


def masked_mean(x: Tensor, mask: Tensor, *, denom: Tensor | float) -> Tensor:
    """`masked_sum(x, mask) / denom`.

    Args:
        x: any shape.
        mask: same shape; bool or 0/1, or non-negative weights.
        denom: what to divide by, > 0: the number of tokens (or the sum of weights) of the whole
            global batch. `mask.sum()` makes it the mean over this call alone. A tensor is not
            checked by content.
    Returns:
        Scalar tensor, at least float32.
    Raises:
        ValueError: shapes differ, or `denom` is a Python number that is not positive.
    """
    if not isinstance(denom, Tensor) and not denom > 0:
        raise ValueError(
            f"denom must be positive, got {denom}: give the token count of the global batch, "
            f"which is at least 1 as empty responses are refused"
        )
    return masked_sum(x, mask) / denom
