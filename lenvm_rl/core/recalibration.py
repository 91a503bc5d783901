"""A stale critic made to fit again: two numbers, refitted on the completions at hand.

A frozen LenVM expects the lengths of the policy that it was trained on. When the policy has become
half as long, G - V is positive at nearly every token, which is a reward for whatever was sampled.
An affine map of the logit, z' = a z + b, takes the common part of such an error out and keeps the
order of states.

The fit sees outcomes that it is then used on, two numbers against thousands of tokens: the bias
of a baseline made that way falls as 1 / (number of completions).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float
from lenvm_rl.core.meeting import ALONE, Meeting
from lenvm_rl.core.rows import Rows

_ROWS = 8  # completions below which two numbers are not worth fitting
_STATES = 2**18  # evenly spaced ones are fitted on: more change nothing but the time
_STEPS = 50
_DAMPING = 1e-3  # of the first step, relative to the curvature; Levenberg-Marquardt from there


@dataclass(frozen=True)
class Recalibration:
    """z' = a z + b, and the mean squared errors of u = sigmoid(z) and sigmoid(z')."""

    a: float = 1.0
    b: float = 0.0
    before: float = 0.0
    after: float = 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply to logits of any shape; the very same tensor where nothing was refitted."""
        return logits if (self.a, self.b) == (1.0, 0.0) else self.a * logits + self.b


def recalibrate(
    logits: Tensor,
    returns: Tensor,
    mask: Tensor | Rows,
    *,
    counted: Tensor | None = None,
    meet: Meeting = ALONE,
) -> Recalibration:
    """The a and b that bring -sigmoid(a z + b) nearest to the returns, in the squared sense.

        min over a > 0, b of  mean_t (sigmoid(a z_t + b) + G_t)**2

    Starts at the identity and never leaves it for a worse fit. Left as it is where there is too
    little to learn from: fewer than 8 completions with a token of the mask, or logits or returns
    that are all equal; and where the best fit would turn the order of states round.

    Args:
        logits: [B, T], z with V = -sigmoid(z).
        returns: [B, T], G in [-1, 0].
        mask: [B, T], non-zero at the tokens of completions that ended by themselves.
        counted: [B] bool, rows that are fitted to; None: all.
        meet: with the workers that hold the other rows of the batch, which all get the same fit.
    Raises:
        ValueError: a logit of the mask that is NaN or infinite.
    """
    rows = Rows.of(mask, logits=logits, returns=returns)
    z, u = (rows.pack(as_float(x, name="logits").detach()) for x in (logits, -returns))
    if counted is not None:
        chosen = rows.spread(counted)
        z, u = z[chosen], u[chosen]
        rows = Rows(rows.lengths[counted])
    z, u = z.double(), u.double()
    told = torch.stack([(rows.lengths > 0).sum(), z.isfinite().logical_not().sum(), _count(z)])
    completions, wrong, tokens = map(int, meet.sum(told.double()).tolist())
    if wrong:
        raise ValueError(
            f"{wrong} of {tokens} logits of the length critic are NaN or infinite: its weights "
            "or its precision are broken. Look at it with `lenvm eval prediction`, and train it "
            "in float32 or bfloat16."
        )
    step = -(-tokens // _STATES) or 1
    z, u = z[::step], u[::step]
    if completions < _ROWS or _all_equal(z, u, meet):
        error, count = meet.sum(torch.stack([(torch.sigmoid(z) - u).square().sum(), _count(z)]))
        error = float(error / count) if count else 0.0
        return Recalibration(before=error, after=error)
    return _fit(z, u, meet)


def _count(z: Tensor) -> Tensor:
    return z.new_tensor(z.numel())


def _all_equal(z: Tensor, u: Tensor, meet: Meeting) -> bool:
    """Whether all z, or all u, are one number."""
    if z.numel():
        ends = torch.stack([z.max(), -z.min(), u.max(), -u.min()])
    else:
        ends = z.new_full((4,), -torch.inf)
    high_z, low_z, high_u, low_u = meet.max(ends).tolist()
    return high_z == -low_z or high_u == -low_u


def _fit(z: Tensor, u: Tensor, meet: Meeting) -> Recalibration:
    """Levenberg-Marquardt on (a, b); every step lowers the error."""
    basis = torch.stack([z, torch.ones_like(z)])

    def look(ab: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summed squared error at (a, b), half its gradient, and its curvature."""
        predicted = torch.sigmoid(ab @ basis)
        off, jacobian = predicted - u, basis * (predicted * (1.0 - predicted))
        told = torch.cat([(off @ off)[None], jacobian @ off, (jacobian @ jacobian.T).flatten()])
        told = meet.sum(told)
        return told[0], told[1:3], told[3:].view(2, 2)

    ab = torch.tensor([1.0, 0.0], dtype=torch.float64, device=z.device)
    error, gradient, curvature = look(ab)
    first, damping = error, _DAMPING
    for _ in range(_STEPS):
        damped = curvature + damping * torch.diag(curvature.diagonal() + 1e-12)
        tried = ab - torch.linalg.solve(damped, gradient)
        found, *slopes = look(tried)
        if found < error and tried[0] > 0:
            settled = bool(error - found <= 1e-12 * first)
            ab, error, damping = tried, found, damping / 4.0
            gradient, curvature = slopes
            if settled:
                break
        else:
            damping *= 8.0
            if damping > 1e8:
                break
    a, b = ab.tolist()
    count = float(meet.sum(_count(z)))
    return Recalibration(a=a, b=b, before=float(first) / count, after=float(error) / count)
