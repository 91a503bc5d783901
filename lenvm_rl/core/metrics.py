"""Measures of how close predictions are to what happened.

Shapes: B sequences, T response positions, P relative positions, M any number of pairs. Functions
that end in one number return a Python float and therefore wait for the device.

A predicted *length* is the inverse of a mean value, so it is at most the mean length (Jensen,
LenVM appendix F): judge calibration and R2 on values (or u = -V), and lengths by relative error.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float, check_fraction, check_rank, check_same_shape
from lenvm_rl.core.returns import discounted_returns
from lenvm_rl.core.rows import Rows
from lenvm_rl.core.truncated import check_finished
from lenvm_rl.core.values import check_gamma

POSITIONS = (0.0, 0.25, 0.5, 0.75, 0.9)


def relative_error(predicted: Tensor, true: Tensor) -> Tensor:
    """`|predicted - true| / true`, elementwise. Lengths in tokens, true > 0; true 0 gives inf."""
    check_same_shape(predicted=predicted, true=true)
    truth = as_float(true, name="true")
    return (as_float(predicted, name="predicted") - truth).abs() / truth


def mean_relative_error(predicted: Tensor, true: Tensor) -> float:
    """Mean of `relative_error` (MRE) over all elements, at least one (LenVM eq. 15)."""
    _need_pairs(predicted, true, at_least=1)
    return relative_error(predicted, true).mean().item()


def at_positions(
    x: Tensor, mask: Tensor | Rows, *, positions: tuple[float, ...] = POSITIONS
) -> Tensor:
    """Read `x` at relative positions of each response.

    Position f of a response of L tokens is its state floor((L - 1) f), counted over the tokens
    of the mask: 0 is s_0, 1 the state before the last token.

    Args:
        x: [B, T].
        mask: [B, T], non-zero at generated tokens.
        positions: P fractions in [0, 1].
    Returns:
        [B, P], at least float32; NaN in rows without tokens.
    """
    rows = Rows.of(mask, x=x)
    length_B = rows.lengths
    fraction_P = torch.tensor(
        [check_fraction(f, name="position") for f in positions],
        dtype=torch.float64,
        device=rows.device,
    )
    # Rank of the wanted token; the nudge keeps e.g. 0.7 * 10 from rounding below 7.
    rank_BP = ((length_B[:, None] - 1) * fraction_P + 1e-9).floor().long().clamp(min=0)
    some = length_B > 0
    values = rows.pack(as_float(x, name="x"))
    out = values.new_full((len(length_B), len(positions)), math.nan)
    out[some] = values[(rows.offsets[:-1, None] + rank_BP)[some]]
    return out


def relative_error_by_position(
    predicted_length: Tensor,
    true_length: Tensor,
    mask: Tensor | Rows,
    *,
    positions: tuple[float, ...] = POSITIONS,
) -> Tensor:
    """Relative error of remaining lengths at relative positions of each response.

    Args:
        predicted_length: [B, T] remaining tokens.
        true_length: [B, T] remaining tokens, `returns.remaining_length`.
        mask: [B, T], non-zero at generated tokens of finished completions.
        positions: P fractions in [0, 1], see `at_positions`.
    Returns:
        [B, P], NaN in rows without tokens: `.nanmean(0)` gives one figure per position, also
        after concatenating batches of different T.
    """
    error = relative_error(predicted_length, true_length)
    return at_positions(error, mask, positions=positions)


def r2(predicted: Tensor, true: Tensor) -> float:
    """Share of variance explained, `1 - mean((p - y)**2) / var(y)`, over at least two pairs.

    The variance is the population one, so predicting the mean gives 0. NaN when all y are equal.
    """
    zero = torch.zeros_like(as_float(true, name="true"))
    return _r2(predicted, true, zero)


def noise_corrected_r2(value: Tensor, mc_mean: Tensor, mc_var_of_mean: Tensor) -> float:
    """R2 against Monte Carlo values, with their sampling variance taken out.

        1 - (mean((V - MC)**2) - mean(s**2 / n)) / (var(MC) - mean(s**2 / n))

    The estimate can exceed 1 by chance, as the corrected error can fall below 0.

    Args:
        value: [M] predicted value of each state.
        mc_mean: [M] mean value of n continuations sampled from the state.
        mc_var_of_mean: [M] `s**2 / n`, with s the (unbiased) standard deviation of the
            continuations within the state.
    Raises:
        ValueError: the sampling variance is at least the variance between states.
    """
    return _r2(value, mc_mean, mc_var_of_mean)


def kendall_tau(x: Tensor, y: Tensor, *, chunk: int = 1024) -> float:
    """Rank correlation tau-b of M pairs, ties accounted for.

        (concordant - discordant) / sqrt((pairs - ties in x) (pairs - ties in y))

    Args:
        x: [M], at least two.
        y: [M].
        chunk: rows compared with all others at a time; memory O(chunk M), work O(M**2).
    Returns:
        In [-1, 1]; NaN when x or y is constant or holds NaN.
    """
    check_rank(x, name="x", axes="M")
    _need_pairs(x, y, at_least=2)
    if x.isnan().any() or y.isnan().any():
        return math.nan  # torch.sign(nan) is 0: it would pass for a tie
    agreement = untied_x = untied_y = 0.0
    for start in range(0, x.numel(), chunk):
        sign_x = torch.sign(x[start : start + chunk, None] - x[None, :])
        sign_y = torch.sign(y[start : start + chunk, None] - y[None, :])
        agreement += (sign_x * sign_y).sum(dtype=torch.float64).item()
        untied_x += sign_x.count_nonzero().item()
        untied_y += sign_y.count_nonzero().item()
    if untied_x == 0 or untied_y == 0:
        return math.nan
    return agreement / (math.sqrt(untied_x) * math.sqrt(untied_y))


def error_sums(mask: Tensor | Rows, values: Tensor, left: Tensor, *, gamma: float) -> Tensor:
    """Errors of a length value model on finished responses, summed over each.

    Args:
        mask: [B, T], non-zero at generated tokens.
        values: [B, T], V(s_t) in [-1, 0].
        left: [B, T], predicted tokens still to come.
        gamma: discount of the values.
    Returns:
        [B, 4] float64: tokens, (V - G)**2, G - V = u_hat - u, |l_hat - l|.
    """
    rows = Rows.of(mask, values=values, left=left)
    flat = rows.flat
    error = discounted_returns(flat, gamma=gamma).double() - rows.pack(values)
    off = (rows.pack(left) - flat.left).abs()
    return torch.stack([flat.lengths.double(), *map(flat.sums, (error.square(), error, off))], 1)


class ValueErrors:
    """Errors of a length value model on finished responses, summed batch by batch.

    Outcomes are single samples, so no model reaches 0: the variance of the returns G is what the
    best constant has.

    Args:
        gamma: discount of the values.
        positions: relative positions of `relative_errors`, see `at_positions`.
    """

    def __init__(self, *, gamma: float, positions: tuple[float, ...] = POSITIONS) -> None:
        self._gamma, self._positions = check_gamma(gamma), positions
        self.tokens = self.responses = 0
        self._squares = self._bias = self._absolute = 0.0
        self._returns = self._returns_squared = self._bias_s0 = 0.0
        self._relative = torch.zeros(len(positions), dtype=torch.float64)

    def add(self, mask: Tensor | Rows, values: Tensor, left: Tensor) -> None:
        """Take a batch.

        Args:
            mask: [B, T], non-zero at the tokens that count, of finished completions.
            values: [B, T], V(s_t) in [-1, 0].
            left: [B, T], predicted tokens still to come.
        """
        rows = Rows.of(mask, values=values, left=left)
        v, left = rows.pack(values).double(), rows.pack(left).double()
        rows = Rows(rows.lengths[rows.lengths > 0])
        returns = discounted_returns(rows, gamma=self._gamma).double()
        tokens, squares, bias, absolute = error_sums(rows, v, left, gamma=self._gamma).sum(0)
        self.tokens += int(tokens)
        self.responses += len(rows.lengths)
        self._squares += squares.item()
        self._bias += bias.item()
        self._absolute += absolute.item()
        self._returns += returns.sum().item()
        self._returns_squared += returns.square().sum().item()
        self._bias_s0 += at_positions(returns - v, rows, positions=(0.0,)).sum().item()
        true = rows.left.double()
        relative = relative_error_by_position(left, true, rows, positions=self._positions)
        self._relative += relative.double().sum(0).cpu()

    @property
    def mse(self) -> float:
        """Mean of (V - G)**2 over tokens."""
        return self._squares / self.tokens

    @property
    def variance(self) -> float:
        """Population variance of G over tokens, the mse of the best constant."""
        return self._returns_squared / self.tokens - (self._returns / self.tokens) ** 2

    @property
    def bias(self) -> float:
        """Mean of u_hat - u over tokens; above 0: predicts too long."""
        return self._bias / self.tokens

    @property
    def bias_s0(self) -> float:
        """Mean of u_hat - u over responses, at the prompt's end s_0."""
        return self._bias_s0 / self.responses

    @property
    def length_error(self) -> float:
        """Mean of |l_hat - l| over tokens, in tokens."""
        return self._absolute / self.tokens

    @property
    def relative_errors(self) -> dict[float, float]:
        """Mean over responses of |l_hat - l| / l, by position."""
        means = (self._relative / self.responses).tolist()
        return dict(zip(self._positions, means, strict=True))


@dataclass(frozen=True, eq=False)
class Calibration:
    """Predictions in bins of equal count, in increasing order: see `calibration`."""

    count: Tensor
    """[bins] int64, pairs in the bin."""
    predicted: Tensor
    """[bins] mean prediction."""
    actual: Tensor
    """[bins] mean outcome: equal to `predicted` for a calibrated model."""
    error: float
    """Expected calibration error: mean |predicted - actual|, weighted by count."""


def calibration(predicted: Tensor, actual: Tensor, *, bins: int = 10) -> Calibration:
    """Mean outcome against mean prediction, in bins of (nearly) equal count by prediction.

    Give values, or u = -V: E[u | prediction] is what the model is trained to be. The mean of raw
    lengths lies above the inverse of a mean value even for a perfect model.

    Args:
        predicted: [M], at least one.
        actual: [M].
        bins: number of bins; at most M are formed.
    """
    check_rank(predicted, name="predicted", axes="M")
    _need_pairs(predicted, actual, at_least=1)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    p, y = as_float(predicted, name="predicted"), as_float(actual, name="actual")
    order = torch.argsort(p, stable=True)
    p_bins = p[order].double().tensor_split(min(bins, p.numel()))
    y_bins = y[order].double().tensor_split(min(bins, p.numel()))
    count = torch.tensor([part.numel() for part in p_bins])
    mean_p = torch.stack([part.mean() for part in p_bins]).cpu()
    mean_y = torch.stack([part.mean() for part in y_bins]).cpu()
    error = ((mean_p - mean_y).abs() * count).sum().item() / p.numel()
    return Calibration(count, mean_p, mean_y, error)


@dataclass(frozen=True)
class Ranking:
    """1-of-k accuracy over the groups that could be judged."""

    accuracy: float
    """Share of groups whose shortest sample was picked; NaN without groups."""
    chance: float
    """What a guess among the samples scores on the same groups; NaN without groups."""
    groups: int
    """Groups with two or more finished samples of different lengths."""


def shortest_of_group(
    lengths_left: Tensor,
    mask: Tensor | Rows,
    finished: Tensor,
    groups: Tensor,
    *,
    position: float = 0.5,
) -> Ranking:
    """1-of-k accuracy of predicted remaining lengths, as VinePPO judges critics.

    Among k samples of a prompt that have run equally far, the one with the shortest predicted
    remainder is picked; it should be the one that ends first. A value that knows nothing is right
    with probability 1/k.

    All samples of a group are judged after the same number of tokens,
    floor(position * shortest length of the group). Truncated samples take no part, since nobody
    knows when they would have ended; nor do groups whose samples are equally long. Predictions that
    tie share the pick.

    Args:
        lengths_left: [B, T], predicted tokens still to come at s_t (any decreasing order will do).
        mask: [B, T], non-zero at generated tokens.
        finished: [B] bool.
        groups: [B] integers; rows with the same number are samples of one prompt.
        position: in [0, 1).
    """
    rows = Rows.of(mask, lengths_left=lengths_left)
    if not check_fraction(position, name="position") < 1:
        raise ValueError(f"position must be below 1, got {position}: at 1 the shortest has ended")
    judged_B = check_finished(finished, rows) & (rows.lengths > 0)
    predicted_N = rows.pack(lengths_left)
    right = chance = 0.0
    judged = 0
    for group in torch.unique(groups).tolist():
        members = ((groups == group) & judged_B).nonzero()[:, 0]
        if len(members) < 2:
            continue
        lengths = rows.lengths[members]
        shortest = lengths == lengths.min()
        if shortest.all():
            continue
        after = int(position * int(lengths.min()))
        predicted = predicted_N[rows.offsets[:-1][members] + after]
        picked = predicted == predicted.min()
        right += (picked & shortest).sum().item() / picked.sum().item()
        chance += shortest.double().mean().item()
        judged += 1
    if not judged:
        return Ranking(float("nan"), float("nan"), 0)
    return Ranking(right / judged, chance / judged, judged)


def _r2(predicted: Tensor, true: Tensor, var_of_truth: Tensor) -> float:
    """R2 in float64 with the mean variance of the truth's own noise taken out of both parts."""
    _need_pairs(predicted, true, at_least=2)
    check_same_shape(true=true, var_of_truth=var_of_truth)
    p, y, noise = predicted.double(), true.double(), var_of_truth.double().mean()
    error = (p - y).square().mean() - noise
    spread = y.var(correction=0) - noise
    if noise > 0 and spread <= 0:
        raise ValueError(
            f"the sampling variance of the Monte Carlo means ({noise.item():.3g}) is not below "
            f"their variance ({y.var(correction=0).item():.3g}): sample more continuations per "
            f"state, or more varied states"
        )
    return (1.0 - error / spread).item() if spread > 0 else math.nan


def _need_pairs(x: Tensor, y: Tensor, *, at_least: int) -> None:
    check_same_shape(x=x, y=y)
    if x.numel() < at_least:
        raise ValueError(f"need at least {at_least} pair(s) to compare, got {x.numel()}")
