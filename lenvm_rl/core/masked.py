"""How is an elementwise quantity reduced over the tokens that count?

The denominator is always an argument. With the token count of the global batch as `denom`, the
results of micro-batches and of data-parallel workers add up to that of the whole batch, so the
loss and its gradient do not depend on how the batch was cut (LenVM eq. 9: token mean).
"""

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_same_shape


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
