"""Can the values tell which of k samples of a prompt is the shortest? As VinePPO asks of critics.

Among k samples that have run equally far, the one with the shortest predicted remainder is picked;
it should be the one that ends first. A value that knows nothing is right with probability 1/k.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lenvm_rl.core.checks import check_fraction, check_rank, check_same_shape
from lenvm_rl.core.truncated import check_finished


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
    mask: Tensor,
    finished: Tensor,
    groups: Tensor,
    *,
    position: float = 0.5,
) -> Ranking:
    """1-of-k accuracy of predicted remaining lengths.

    All samples of a group are judged after the same number of tokens,
    floor(position * shortest length of the group). Cut samples take no part, since nobody knows
    when they would have ended; nor do groups whose samples are equally long. Predictions that tie
    share the pick.

    Args:
        lengths_left: [B, T], predicted tokens still to come at s_t (any decreasing order will do).
        mask: [B, T], non-zero at generated tokens.
        finished: [B] bool.
        groups: [B] integers; rows with the same number are samples of one prompt.
        position: in [0, 1).
    """
    check_rank(mask, name="mask", axes="BT")
    check_same_shape(lengths_left=lengths_left, mask=mask)
    if not check_fraction(position, name="position") < 1:
        raise ValueError(f"position must be below 1, got {position}: at 1 the shortest has ended")
    is_finished = check_finished(finished, mask)
    counted = mask != 0
    length_B = counted.sum(1)
    # Columns of the tokens in order, then the padding.
    column_BT = torch.argsort((~counted).int(), dim=1, stable=True)
    right = chance = 0.0
    judged = 0
    for group in torch.unique(groups).tolist():
        rows = ((groups == group) & is_finished & (length_B > 0)).nonzero()[:, 0]
        if len(rows) < 2:
            continue
        lengths = length_B[rows]
        shortest = lengths == lengths.min()
        if shortest.all():
            continue
        column = column_BT[rows, int(position * int(lengths.min()))]
        predicted = lengths_left[rows, column]
        picked = predicted == predicted.min()
        right += (picked & shortest).sum().item() / picked.sum().item()
        chance += shortest.double().mean().item()
        judged += 1
    if not judged:
        return Ranking(float("nan"), float("nan"), 0)
    return Ranking(right / judged, chance / judged, judged)
