"""The distribution over the candidates that a length request asks for.

Shapes: R rows (requests), K candidates. Every row has its own mode, gamma and numbers.

A candidate x has probability p(x) and a predicted remaining length l(x) in tokens, that of the
state after it; its discounted length is u(x) = 1 - gamma**l(x). After EOS nothing remains: l(EOS) =
0 exactly. With t tokens generated, taking x makes a response of t + l(x) tokens, EOS not counted,
so of the n tokens asked for `n_left = n - t` remain (one fewer where n counts EOS).

    off         p
    tilt        p'(x) ~ p(x) exp(beta u(x))
    scale       the tilt with E[u] (or E[l]) times a factor, at most to the ends of the candidates
    equal       the candidate with l nearest to n_left, a token too few counting `short_weight`
                tokens too many; ties to the more probable
    equal_soft  the tilt with E[u] = 1 - gamma**n_left
    at_most     p while E_p[u] <= 1 - gamma**n_left, else the tilt that meets it; with a risk r,
                p while P_p(l > n_left) <= r, else the tilt by P(l > n_left | x) that meets it
    at_least    p once E_p[u] >= 1 - gamma**n_left, else the tilt that meets it, beta bounded;
                no EOS before n (`forbids_eos`), p after n

Once n is used up, equal, equal_soft and at_most take EOS if it is a candidate, else the shortest
candidate. (The paper's at-least always takes the longest candidate: `extreme`.)

Precision: l comes from the logit and does not saturate. Discounted lengths are compared relative to
the row's shortest candidate, where they keep their digits however long that is:

    (u(x) - u_min) / (1 - u_min) = 1 - gamma**(l(x) - l_min)
"""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from lenvm_rl.core.checks import check_rank, check_same_shape, per_row
from lenvm_rl.core.tilt import tilt, tilt_to_mean, working_dtype
from lenvm_rl.core.values import check_gamma

MODES = ("off", "tilt", "scale", "equal", "equal_soft", "at_most", "at_least")
_CODE = {mode: code for code, mode in enumerate(MODES)}
_SOFT = ("scale", "equal_soft", "at_most", "at_least")
_ENDING = ("equal", "equal_soft", "at_most")
_TARGET = ("generated", "target", "count_eos")
_READS: dict[str, tuple[str, ...]] = {
    "tilt": ("beta",),
    "scale": ("scale", "scale_length"),
    "equal": (*_TARGET, "force_eos", "value_space", "short_weight"),
    "equal_soft": (*_TARGET, "force_eos"),
    "at_most": (*_TARGET, "force_eos", "risk"),
    "at_least": (*_TARGET, "extreme", "max_beta"),
}


class Guided(NamedTuple):
    """What guidance makes of one step."""

    log_probs: Tensor
    """[R, K] normalised, -inf outside the candidates; the input's own bits where p is kept."""
    force_eos: Tensor
    """[R] bool, rows that must end now, whether or not EOS is a candidate."""


def tokens_left(
    target: Tensor | float, generated: Tensor | float, *, count_eos: Tensor | bool = False
) -> Tensor:
    """`n_left = n - t`, or `n - t - 1` where n counts EOS; numbers or [R] tensors."""
    return torch.as_tensor(target) - generated - torch.as_tensor(count_eos).long()


SPARE_SHARES = (0.0, 0.125, 0.25, 0.5)
"""Of n_left: how many tokens fewer a chance is asked for, to see how much it has to spare."""


def tokens_to_spare(
    log_probs: Tensor,
    lengths: Tensor,
    *,
    mode: Tensor,
    gamma: Tensor | float,
    left: Tensor,
    risk: Tensor | float = 0.0,
    beyond: Tensor | None = None,
) -> Tensor:
    """[R] how far the bound of a row is from acting, in tokens; <= 0 where it acts.

        at_most     n_left - L,  where 1 - gamma**L = E_p[u]
        at_least    L - n_left
        with a risk r: the largest of `SPARE_SHARES` times n_left for which P_p(l > n_left - it)
        is at most r; 0 where there is none

    What it says of rows of other modes does not matter.

    Args:
        log_probs: [R, K] of the candidates, -inf outside.
        lengths: [R, K] predicted remaining tokens; 0 at ends.
        mode: [R] int, positions in `MODES`.
        gamma: number or [R], see `guide`.
        left: [R] n_left.
        risk: number or [R]; 0 bounds the mean.
        beyond: [S, R, K] P(l > (1 - share) n_left), 0 at ends, of each of the `SPARE_SHARES`.
    """
    check_same_shape(log_probs=log_probs, lengths=lengths)
    wide = working_dtype(lengths.device)
    log_p, rate = log_probs.to(wide), _log_gamma(gamma, like=log_probs)
    left = left.to(wide)
    even = (log_p + lengths.to(wide) * rate).logsumexp(-1, keepdim=True) / rate  # [R, 1] L
    spare = left - even[:, 0]
    spare = torch.where(mode == _CODE["at_least"], -spare, spare)
    if beyond is None:
        return spare
    chance = (log_p.softmax(-1) * beyond.to(wide)).sum(-1)  # [S, R]
    shares = torch.stack([left * share for share in SPARE_SHARES])
    found = shares.masked_fill(chance > risk, 0.0).amax(0)
    return torch.where(torch.as_tensor(risk, device=left.device) > 0, found, spare)


def forbids_eos(
    mode: Tensor,
    generated: Tensor | float,
    target: Tensor | float,
    *,
    count_eos: Tensor | bool = False,
    own_ends: Tensor | bool = False,
) -> Tensor:
    """[R] bool: rows before n whose ends must not be among the candidates: at_least, and of
    `own_ends` (tokens that end this row alone, so that no length knows of them) equal and
    equal_soft, which would take such a token wherever it is the only candidate."""
    left = tokens_left(target, generated, count_eos=count_eos)
    own = torch.as_tensor(own_ends) & _any_of(mode, ("equal", "equal_soft"))
    return ((mode == _CODE["at_least"]) | own) & (left > 0)


def guide(
    log_probs: Tensor,
    lengths: Tensor,
    mask: Tensor,
    is_eos: Tensor,
    *,
    mode: Tensor,
    gamma: Tensor | float,
    present: Collection[str] = MODES,
    beyond: Tensor | None = None,
    **numbers: Tensor | float,
) -> Guided:
    """The guided distribution of one step of every row; rows never influence each other.

    Args:
        log_probs: [R, K] of the candidates; normalised where p is to be kept as it is.
        lengths: [R, K] predicted remaining tokens >= 0 after each candidate.
        mask: [R, K] bool, True at candidates.
        is_eos: [R, K] bool; their lengths count as 0.
        mode: [R] int, positions in `MODES`.
        gamma: number or [R] in (0, 1); make a tensor float64 (float32 blurs ln gamma near 1).
        present: modes that may occur; naming fewer saves work and changes no result.
        beyond: [R, K] in [0, 1], P(l > n_left) after each candidate; needed where a row has a risk.
        numbers: what the modes read, each a number (or bool) or [R]; see `RowNumbers`.
    Reference: LenVM sections 4.2 and 4.3.
    """
    check_rank(log_probs, name="log_probs", axes="RK")
    check_same_shape(log_probs=log_probs, lengths=lengths, mask=mask, is_eos=is_eos)
    rows = RowNumbers.of(numbers, like=log_probs, present=present)
    step = _Step(log_probs, lengths, mask, is_eos, _log_gamma(gamma, like=log_probs))
    if beyond is not None:
        check_same_shape(log_probs=log_probs, beyond=beyond)
        ended = is_eos | ~step.support  # with EOS nothing is beyond, but what is already
        step.beyond = beyond.to(step.lengths.dtype).masked_fill(ended, 0.0)
    left = torch.zeros(())
    if any("target" in _READS.get(mode, ()) for mode in present):
        left = tokens_left(rows.target, rows.generated, count_eos=rows.count_eos)
    codes = mode[:, None]

    result = step.log_probs
    for name in MODES[1:]:
        if name in present and name not in _SOFT:
            rule = _tilted if name == "tilt" else _nearest
            result = torch.where(codes == _CODE[name], rule(step, rows, left), result)
    if set(present) & set(_SOFT):
        result = torch.where(_any_of(codes, _SOFT), _soft(step, rows, left, codes, present), result)
    if not set(present) & set(_ENDING):
        return Guided(result, torch.zeros_like(mode, dtype=torch.bool))
    ends = _any_of(codes, _ENDING) & (left <= 0)
    result = torch.where(ends, step.ending(), result)
    return Guided(result, (ends & (rows.force_eos != 0))[:, 0])


class RowNumbers(NamedTuple):
    """What the modes of `guide` read: given as numbers (or bools) or [R], here [R, 1] columns.

    What no mode reads that is present stays a number: its default.
    """

    generated: Tensor
    """Response tokens so far, t. Default 0."""
    target: Tensor
    """Response tokens n >= 0 of equal, equal_soft, at_most, at_least. Default 0."""
    count_eos: Tensor
    """Whether n counts EOS. Default False."""
    force_eos: Tensor
    """Whether to end once n is used up even if EOS is no candidate (not at_least). False."""
    beta: Tensor
    """Strength of tilt, finite. Default 0, which keeps p."""
    scale: Tensor
    """Factor >= 0 of scale. Default 1, which keeps p."""
    scale_length: Tensor
    """Whether scale multiplies E[l] instead of E[u]. Default False."""
    value_space: Tensor
    """Whether equal compares discounted lengths instead of lengths. Default False."""
    short_weight: Tensor
    """What equal pays for each token (or unit of discounted length) below the target, where one
    above it costs 1; > 0. Default 1, the paper's distance. 2.5 weighs as the Length Score does."""
    extreme: Tensor
    """Whether at_least takes the longest candidate before n. Default False."""
    max_beta: Tensor
    """Bound on at_least's beta, > 0. Default 50."""
    risk: Tensor
    """Chance in (0, 1) that at_most leaves of more than n tokens; 0 bounds the mean. Default 0."""

    @classmethod
    def of(
        cls, numbers: dict[str, Tensor | float], *, like: Tensor, present: Collection[str] = MODES
    ) -> "RowNumbers":
        """Columns for `like` [R, K], in the working precision of its device.

        Raises:
            ValueError: an unknown name, or a tensor that is not [R].
        """
        unknown = sorted(set(numbers) - set(cls._fields))
        if unknown:
            raise ValueError(f"unknown numbers {unknown}: use some of {', '.join(cls._fields)}")
        like = like.to(working_dtype(like.device))
        read = {name for mode in present for name in _READS.get(mode, ())}
        rows = dict(_DEFAULTS)  # of what no mode reads, only the shape matters: one number
        for name in read:
            row = per_row(numbers.get(name, _DEFAULTS[name]), like=like, name=name)
            rows[name] = row.to(like.dtype)[:, None]
        return cls(**rows)


_DEFAULTS = {name: torch.tensor(0.0) for name in RowNumbers._fields}
_DEFAULTS |= {name: torch.tensor(1.0) for name in ("scale", "short_weight")}
_DEFAULTS |= {"max_beta": torch.tensor(50.0)}


class _Step:
    """One step of all rows: probabilities, lengths and relative discounted lengths of the
    candidates."""

    def __init__(
        self,
        log_probs: Tensor,
        lengths: Tensor,
        mask: Tensor,
        is_eos: Tensor,
        log_gamma: Tensor | float,
    ):
        self.log_probs = log_probs.masked_fill(~mask, -torch.inf)
        self.support = self.log_probs > -torch.inf
        outside = ~self.support
        self.is_eos = is_eos & self.support
        wide = lengths.to(working_dtype(lengths.device)).masked_fill(is_eos | outside, 0.0)
        self.lengths = wide  # [R, K]
        self.log_gamma = log_gamma  # number or [R, 1]
        self.shortest = wide.masked_fill(outside, torch.inf).amin(-1, keepdim=True)
        self.along = self.position(wide).masked_fill(outside, 0.0)  # [R, K] in [0, 1)
        self.unit = torch.exp(self.shortest * log_gamma)  # 1 - u_min: that of one `along`
        self.beyond: Tensor | None = None  # [R, K] P(l > n_left)

    def position(self, length: Tensor) -> Tensor:
        """(u(length) - u_min) / (1 - u_min); below 0, down to -inf, if shorter than all."""
        return -torch.expm1((length - self.shortest) * self.log_gamma)

    def mean(self, x: Tensor) -> Tensor:
        """[R, 1] mean of x [R, K] under p."""
        return (torch.softmax(self.log_probs.to(x.dtype), dim=-1) * x).sum(-1, keepdim=True)

    def pick(self, distance: Tensor) -> Tensor:
        """One-hot log-probabilities of the nearest candidate; ties to the more probable, then
        to the one that comes first."""
        distance = distance.masked_fill(~self.support, torch.inf)
        tied = self.support & (distance == distance.amin(-1, keepdim=True))
        chances = self.log_probs.masked_fill(~tied, -torch.inf)
        tied &= chances == chances.amax(-1, keepdim=True)
        first = tied & (tied.cumsum(-1) == 1)
        return torch.zeros_like(self.log_probs).masked_fill(~first, -torch.inf)

    def ending(self) -> Tensor:
        """EOS where it is a candidate (p among several), else the shortest candidate."""
        eos = torch.log_softmax(self.log_probs.masked_fill(~self.is_eos, -torch.inf), dim=-1)
        return torch.where(self.is_eos.any(-1, keepdim=True), eos, self.pick(self.lengths))


def _tilted(step: _Step, rows: RowNumbers, left: Tensor) -> Tensor:
    # beta u = beta u_min + beta (1 - u_min) along, and the constant does not matter.
    return tilt(step.log_probs, step.along, (rows.beta * step.unit)[:, 0])


def _nearest(step: _Step, rows: RowNumbers, left: Tensor) -> Tensor:
    # Clamped to the candidates' range, which moves no nearest candidate: a target far below it
    # would be infinitely far from all of them.
    goal = step.position(left).clamp(0.0, 1.0)
    gap = torch.where(rows.value_space != 0, step.along - goal, step.lengths - left)
    return step.pick(torch.where(gap < 0, -gap * rows.short_weight, gap))


def _soft(
    step: _Step, rows: RowNumbers, left: Tensor, codes: Tensor, present: Collection[str]
) -> Tensor:
    """scale, equal_soft, at_most and at_least: one root for every row."""
    now, budget = step.mean(step.along), step.position(left)
    goal, statistic = budget, step.along
    keeps = (codes == _CODE["at_most"]) & (now <= budget)
    if "scale" in present:
        is_scale = codes == _CODE["scale"]
        by_length = is_scale & (rows.scale_length != 0)
        # s E[u] = s (u_min + (1 - u_min) E[along]), relative to u_min: u_min / (1 - u_min) is the
        # expm1 below.
        offset = torch.expm1(-step.shortest * step.log_gamma)
        goal = torch.where(is_scale, rows.scale * now + (rows.scale - 1.0) * offset, goal)
        goal = torch.where(by_length, rows.scale * step.mean(step.lengths), goal)
        statistic = torch.where(by_length, step.lengths, statistic)
        keeps |= is_scale & (rows.scale == 1.0)
    direction = step.along
    if step.beyond is not None:
        chance = (codes == _CODE["at_most"]) & (rows.risk > 0)
        goal = torch.where(chance, rows.risk, goal)
        direction = torch.where(chance, step.beyond, direction)
        statistic = torch.where(chance, step.beyond, statistic)
        keeps = torch.where(chance, step.mean(step.beyond) <= rows.risk, keeps)
    result, beta = tilt_to_mean(step.log_probs, direction, goal[:, 0], statistic=statistic)
    if "at_least" in present:
        is_least, extreme = codes == _CODE["at_least"], rows.extreme != 0
        beta = torch.minimum(beta, (rows.max_beta * step.unit)[:, 0]).clamp(min=0.0)
        bounded = tilt(step.log_probs, step.along, beta)
        longer = torch.where(extreme, step.pick(-step.lengths), bounded)
        result = torch.where(is_least, longer, result)
        keeps |= is_least & ((left <= 0) | ((now >= budget) & ~extreme))
    return torch.where(keeps, step.log_probs, result)


def _any_of(codes: Tensor, names: tuple[str, ...]) -> Tensor:
    return torch.stack([codes == _CODE[name] for name in names]).any(0)


def _log_gamma(gamma: Tensor | float, *, like: Tensor) -> Tensor | float:
    """ln gamma: of a number a number, of a tensor [R, 1]."""
    if not isinstance(gamma, Tensor):
        return math.log(check_gamma(gamma))
    row = per_row(gamma, like=like, name="gamma")
    return row.to(working_dtype(like.device)).log()[:, None]
