"""Conversions between remaining length, value, discounted length and logit.

Four views of one state with `l` tokens still to come (the EOS counted, the last token -> 1,
after EOS -> 0), for a per-token discount gamma in (0, 1):

    length             l                  tokens, 0 <= l
    value              V = -(1 - gamma**l)  -1 < V <= 0: what training fits (LenVM eq. 2)
    discounted length  u = 1 - gamma**l = -V  0 <= u < 1, unitless: what guidance works on
    logit              z, V = -sigmoid(z)  the raw output of the value head (LenVM eq. 6-8)

Precision. A value near -1, and u near 1, runs out of digits: float32 cannot hold lengths beyond
5,537 tokens at gamma .997 (`resolution_limit`). The logit does not: `1 + V = sigmoid(-z)`, so
`l = softplus(z) / -ln gamma` is good to float32 round-off from 1 to 100,000 tokens. Hand on
logits, in float32, and convert last.

Tensors may have any shape and real dtype; the result has the same shape and at least float32
(integer and half types become float32, a Python number becomes a float64 scalar tensor).
"""

import math
import numbers
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lenvm_rl.core.checks import as_float


def check_gamma(gamma: float) -> float:
    """Return gamma as a float.

    Raises:
        ValueError: not a number, NaN, or outside the open interval (0, 1).
    """
    if isinstance(gamma, numbers.Real) and 0.0 < gamma < 1.0:
        return float(gamma)
    reason = "it is the per-token discount of the length value"
    if gamma == 1:
        reason = "at gamma = 1 every length has value 0"
    elif gamma == 0:
        reason = "at gamma = 0 every length has value -1"
    raise ValueError(
        f"gamma must be in (0, 1), got {gamma!r}: {reason}. "
        f"Use gamma_for_length(L99), e.g. 0.997 for lengths up to 1,500 or 0.999 up to 4,600 tokens"
    )


def length_to_value(length: Tensor | float, *, gamma: float) -> Tensor:
    """Discounted return of emitting `length` more tokens at reward -(1 - gamma) each.

        V = -(1 - gamma**l) = expm1(l ln gamma)

    Args:
        length: remaining tokens >= 0, any shape. Counts the token about to be emitted.
        gamma: per-token discount in (0, 1).
    Returns:
        Value in [-1, 0], same shape. Inverse of `value_to_length`.
    Raises:
        ValueError: gamma outside (0, 1); negative or NaN Python number.
    Reference: LenVM eq. 2.
    """
    return -length_to_u(length, gamma=gamma)


def value_to_length(value: Tensor | float, *, gamma: float) -> Tensor:
    """Remaining tokens whose discounted return is `value`.

        l = ln(1 + V) / ln gamma

    Use `logit_to_length` wherever the logit is at hand: values saturate (`resolution_limit`).

    Args:
        value: discounted return in [-1, 0], any shape. -1 gives inf. Tensors are not checked by
            content: a positive value gives a negative length, one below -1 gives NaN.
        gamma: per-token discount in (0, 1).
    Returns:
        Length in tokens, same shape. Inverse of `length_to_value`.
    Raises:
        ValueError: gamma outside (0, 1); Python number outside [-1, 0].
    Reference: LenVM eq. 5.
    """
    return u_to_length(-as_float(value, name="value", low=-1.0, high=0.0), gamma=gamma)


def length_to_u(length: Tensor | float, *, gamma: float) -> Tensor:
    """Discounted length `u = 1 - gamma**l` in [0, 1] of `length` >= 0 tokens; larger is longer.

    Inverse of `u_to_length`. Raises ValueError as `length_to_value` does.
    """
    rate = -math.log(check_gamma(gamma))
    return -torch.expm1(as_float(length, name="length", low=0.0) * -rate)


def u_to_length(u: Tensor | float, *, gamma: float) -> Tensor:
    """Remaining tokens `l = ln(1 - u) / ln gamma` of a discounted length in [0, 1]; 1 gives inf.

    Tensors are not checked by content: a negative u gives a negative length, one above 1
    gives NaN. Inverse of `length_to_u`. Raises ValueError as `value_to_length` does.
    """
    rate = -math.log(check_gamma(gamma))
    return torch.log1p(-as_float(u, name="u", low=0.0, high=1.0)) / -rate


def logit_to_value(logit: Tensor | float) -> Tensor:
    """Value `V = -sigmoid(z)` in [-1, 0] of a head output. Inverse of `value_to_logit`."""
    return -logit_to_u(logit)


def logit_to_u(logit: Tensor | float) -> Tensor:
    """Discounted length `u = sigmoid(z)` in [0, 1] of a head output, at least float32."""
    return torch.sigmoid(as_float(logit, name="logit"))


def value_to_logit(value: Tensor | float) -> Tensor:
    """Logit `z = ln(-V) - ln(1 + V)` of a value in [-1, 0]; 0 gives -inf and -1 gives inf.

    Inverse of `logit_to_value`. Tensors outside [-1, 0] give NaN, Python numbers a ValueError.
    """
    v = as_float(value, name="value", low=-1.0, high=0.0)
    return torch.log(-v) - torch.log1p(v)


def softplus(x: Tensor) -> Tensor:
    """`ln(1 + exp(x))`, exact at both ends (torch's own becomes linear beyond x = 20)."""
    return -F.logsigmoid(-x)


def logit_to_length(logit: Tensor | float, *, gamma: float) -> Tensor:
    """Remaining tokens of a head output, without passing through the saturating value.

        l = softplus(z) / -ln gamma        because 1 + V = sigmoid(-z)

    The inverse of a predicted mean is at most the mean length (Jensen, LenVM appendix F).

    Args:
        logit: raw head output, any shape.
        gamma: per-token discount in (0, 1), the one the head was trained with.
    Returns:
        Length in tokens, same shape. Inverse of `length_to_logit`.
    """
    rate = -math.log(check_gamma(gamma))
    return softplus(as_float(logit, name="logit")) / rate


def length_to_logit(length: Tensor | float, *, gamma: float) -> Tensor:
    """Logit whose value is that of `length` remaining tokens; length 0 gives -inf.

        z = ln(expm1(x)) = x + ln(-expm1(-x)),   x = -l ln gamma

    The second form is used: it neither overflows at large x (z -> x) nor cancels at small x
    (z -> ln x).

    Args:
        length: remaining tokens >= 0, any shape.
        gamma: per-token discount in (0, 1).
    Returns:
        Logit, same shape. Inverse of `logit_to_length`.
    """
    rate = -math.log(check_gamma(gamma))
    x = as_float(length, name="length", low=0.0) * rate
    return x + torch.log(-torch.expm1(-x))


def gamma_for_length(length_p99: float, *, u: float = 0.99) -> float:
    """Discount at which `length_p99` tokens have the discounted length `u`.

        1 - gamma**L99 = u   =>   gamma = (1 - u)**(1 / L99)

    With the default: 1,533 tokens give 0.997, 4,603 give 0.999, 23,024 give 0.9998.

    Args:
        length_p99: a long length of the data in tokens (its 99th percentile), > 0.
        u: where that length shall lie in (0, 1).
    Raises:
        ValueError: length not positive and finite, u outside (0, 1).
    Reference: LenVM section 5.3.
    """
    if not (0.0 < length_p99 < math.inf):
        raise ValueError(
            f"length_p99 must be positive and finite, got {length_p99}: "
            f"give the 99th percentile of the response lengths in tokens"
        )
    if not 0.0 < u < 1.0:
        raise ValueError(f"u must be in (0, 1), got {u}: the default is 0.99")
    return check_gamma(math.exp(math.log1p(-u) / length_p99))


def gamma_from_lengths(
    lengths: Tensor | Sequence[float], *, percentile: float = 99.0, u: float = 0.99
) -> float:
    """Discount that suits a data set: `gamma_for_length` of a percentile of its lengths.

    The percentile interpolates linearly between order statistics. The length of a truncated
    completion is a lower bound: with many of them the result is too small.

    Args:
        lengths: response lengths in tokens, all > 0, at least one; flattened.
        percentile: in (0, 100].
        u: see `gamma_for_length`.
    """
    flat = torch.as_tensor(lengths).flatten().to(torch.float64)
    if flat.numel() == 0:
        raise ValueError("no lengths given: gamma cannot be chosen from an empty data set")
    if not 0.0 < percentile <= 100.0:
        raise ValueError(f"percentile must be in (0, 100], got {percentile}: the default is 99")
    shortest = flat.min().item()
    if not shortest > 0.0:
        raise ValueError(
            f"lengths must be positive, got {shortest}: a response has at least its EOS token"
        )
    # kthvalue, not torch.quantile: the latter refuses more than 16 M elements.
    rank = (flat.numel() - 1) * percentile / 100.0
    below = flat.kthvalue(math.floor(rank) + 1).values.item()
    above = flat.kthvalue(math.ceil(rank) + 1).values.item()
    return gamma_for_length(below + (above - below) * (rank - math.floor(rank)), u=u)


def resolution_limit(*, gamma: float, dtype: torch.dtype, from_logit: bool) -> float:
    """Longest finite length, in tokens, that a number of `dtype` can stand for.

        value or u:        ln(eps / 2) / ln gamma     the last number below 1 is 1 - eps / 2
        logit:             max / -ln gamma            softplus(z) -> z

    with eps and max from `torch.finfo(dtype)`. At gamma .999 a bfloat16 value ends at 5,542
    tokens and a float32 value at 16,627; a logit has no practical end, its error is relative
    (`logit_error_floor`).

    Raises:
        ValueError: gamma outside (0, 1), dtype not floating point.
    """
    rate = -math.log(check_gamma(gamma))
    info = _float_info(dtype)
    return info.max / rate if from_logit else -math.log(info.eps / 2) / rate


def logit_error_floor(logit: Tensor | float, *, dtype: torch.dtype) -> Tensor:
    """Relative error of a length whose logit was rounded to `dtype`.

        |dl| / l = sigmoid(z) |z| / (k softplus(z)),   k = 1 / eps

    k is 128 for bfloat16, 1,024 for float16, 2**23 for float32. For long lengths the floor is
    1 / k; below z = -1 it grows as |z| / k: the error concentrates at short lengths.

    Returns:
        Unitless, same shape as `logit`, independent of gamma.
    Reference: LenVM appendix D.
    """
    z = as_float(logit, name="logit")
    # sigmoid / softplus -> 1 as z -> -inf, where both underflow: take the ratio of logarithms.
    ratio = torch.exp(F.logsigmoid(z) - torch.log(softplus(z)))
    ratio = torch.where(z < -30.0, torch.ones_like(z), ratio)
    return ratio * z.abs() * _float_info(dtype).eps


def _float_info(dtype: torch.dtype) -> torch.finfo:
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating point, got {dtype}: use e.g. torch.float32")
    return torch.finfo(dtype)
