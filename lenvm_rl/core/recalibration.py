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

from lenvm_rl.core.checks import as_float, check_same_shape

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


def recalibrate(logits: Tensor, returns: Tensor, mask: Tensor) -> Recalibration:
    """The a and b that bring -sigmoid(a z + b) nearest to the returns, in the squared sense.

        min over a > 0, b of  mean_t (sigmoid(a z_t + b) + G_t)**2

    Starts at the identity and never leaves it for a worse fit. Left as it is where there is too
    little to learn from: fewer than 8 completions with a token of the mask, or logits or returns
    that are all equal; and where the best fit would turn the order of states round.

    Args:
        logits: [B, T], z with V = -sigmoid(z).
        returns: [B, T], G in [-1, 0].
        mask: [B, T], non-zero at the tokens of completions that ended by themselves.
    Raises:
        ValueError: a logit of the mask that is NaN or infinite.
    """
    check_same_shape(logits=logits, returns=returns, mask=mask)
    counted = mask != 0
    z = as_float(logits, name="logits").detach()[counted].double()
    if not z.isfinite().all():
        wrong = int((~z.isfinite()).sum())
        raise ValueError(
            f"{wrong} of {z.numel()} logits of the length critic are NaN or infinite: its weights "
            "or its precision are broken. Look at it with `lenvm eval prediction`, and train it "
            "in float32 or bfloat16."
        )
    u = -as_float(returns, name="returns")[counted].double()
    step = -(-z.numel() // _STATES) or 1
    z, u = z[::step], u[::step]
    few = int(counted.any(1).sum()) < _ROWS
    if few or z.min() == z.max() or u.min() == u.max():
        error = float(_squared(z, u)) if z.numel() else 0.0
        return Recalibration(before=error, after=error)
    return _fit(z, u)


def _squared(z: Tensor, u: Tensor) -> Tensor:
    return (torch.sigmoid(z) - u).square().mean()


def _fit(z: Tensor, u: Tensor) -> Recalibration:
    """Levenberg-Marquardt on (a, b); every step lowers the error."""
    basis = torch.stack([z, torch.ones_like(z)])
    ab = torch.tensor([1.0, 0.0], dtype=torch.float64, device=z.device)
    first = error = _squared(z, u)
    damping = _DAMPING
    for _ in range(_STEPS):
        predicted = torch.sigmoid(ab @ basis)
        jacobian = basis * (predicted * (1.0 - predicted))
        gradient, curvature = jacobian @ (predicted - u), jacobian @ jacobian.T
        damped = curvature + damping * torch.diag(curvature.diagonal() + 1e-12)
        move = torch.linalg.solve(damped, gradient)
        tried = ab - move
        found = _squared(tried @ basis, u)
        if found < error and tried[0] > 0:
            settled = bool(error - found <= 1e-12 * first)
            ab, error, damping = tried, found, damping / 4.0
            if settled:
                break
        else:
            damping *= 8.0
            if damping > 1e8:
                break
    a, b = ab.tolist()
    return Recalibration(a=a, b=b, before=float(first), after=float(error))
