"""LIFEBench's deviation and score, in tokens: how well a requested length was met.

    d = (length - requested) / requested

    control      score
    equal        100 exp(5 d) for d < 0, 100 exp(-2 d) for d >= 0
    at_most      100 for d <= 0, otherwise as equal
    at_least     100 for d >= 0, otherwise as equal

A failed generation scores 0 and deviates by 100 %, it is never dropped. Shapes are free and the
functions elementwise: the benchmark's figures are the mean of the score and of `|d|` in percent.

Two scorers carry the name. The paper of LIFEBench (arXiv 2505.16234) writes the formula above, and
LenVM's tables use it: `lifebench_score`. LIFEBench's own program puts the deviation *in percent*
into the exponent, so that 1 % too long costs what 100 % should: `lifebench_official_score`. Its
figures are those of the public leaderboard; the two must not be mixed.
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


def lifebench_official_score(
    length: Tensor, requested: Tensor, *, control: str = "equal"
) -> Tensor:
    """Score in [0, 100] as LIFEBench's own program computes it, elementwise, in float64.

        p = (length - requested) / requested * 100
        100 exp(5 p) for p < 0, 100 exp(-2 p) for p >= 0; at_most 100 for p < 0, at_least for p > 0

    The percent in the exponent is the program's, not its paper's. The program leaves failed and
    empty generations out of its means; that is the caller's to do, see
    `lenvm_rl.evals.length_control.lifebench`.

    Args:
        length: words or tokens generated, any shape.
        requested: as many asked for, > 0, same shape.
        control: one of `CONTROLS`.
    Source: LIFEBench, evaluate/evaluate_all_results.py at 143e1d6.
    """
    check_choice(control, name="control", known=CONTROLS)
    check_same_shape(length=length, requested=requested)
    percent = (length.double() - requested.double()) / requested.double() * 100
    score = 100.0 * torch.exp(torch.where(percent < 0, 5.0 * percent, -2.0 * percent))
    if control == "at_most":
        return torch.where(percent < 0, 100.0, score)
    if control == "at_least":
        return torch.where(percent > 0, 100.0, score)
    return score
