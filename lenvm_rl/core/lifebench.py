"""How well was a requested length met? LIFEBench's deviation and score, in tokens.

    d = (length - requested) / requested

    control      score
    equal        100 exp(5 d) for d < 0, 100 exp(-2 d) for d >= 0
    at_most      100 for d <= 0, otherwise as equal
    at_least     100 for d >= 0, otherwise as equal

A failed generation scores 0 and deviates by 100 %, it is never dropped. Shapes are free and the
functions elementwise: the benchmark's figures are the mean of the score and of `|d|` in percent.
"""

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_choice, check_same_shape

CONTROLS = ("equal", "at_most", "at_least")


def lifebench_deviation(
    length: Tensor, requested: Tensor, *, failed: Tensor | None = None
) -> Tensor:
    """Signed relative deviation d, elementwise; -1 where `failed`.

    Args:
        length: tokens generated, any shape; EOS counted as it is in `requested`.
        requested: tokens asked for, > 0, same shape.
        failed: bool, same shape; True where no answer came. What `length` holds there is ignored.
    Returns:
        Same shape, at least float32, >= -1. `100 * d.abs().mean()` is the deviation in percent.
    """
    check_same_shape(length=length, requested=requested)
    asked = as_float(requested, name="requested")
    deviation = (as_float(length, name="length") - asked) / asked
    if failed is None:
        return deviation
    check_same_shape(length=length, failed=failed)
    return torch.where(failed.bool(), -1.0, deviation)


def lifebench_score(
    length: Tensor, requested: Tensor, *, control: str = "equal", failed: Tensor | None = None
) -> Tensor:
    """Score in [0, 100], elementwise; 0 where `failed`.

    Args:
        length: tokens generated, any shape.
        requested: tokens asked for, > 0, same shape.
        control: one of `CONTROLS`: what was asked for.
        failed: bool, same shape; True where no answer came.
    """
    check_choice(control, name="control", known=CONTROLS)
    d = lifebench_deviation(length, requested, failed=failed)
    score = 100.0 * torch.exp(torch.where(d < 0, 5.0 * d, -2.0 * d))
    if control == "at_most":
        score = torch.where(d <= 0, 100.0, score)
    elif control == "at_least":
        score = torch.where(d >= 0, 100.0, score)
    return score if failed is None else torch.where(failed.bool(), 0.0, score)
