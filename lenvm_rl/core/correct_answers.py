"""The length term in correct answers alone: against what it is judged, its unit, its bound.

A term that only correct answers get, c * (G - b) with c in [0, 1], is an advantage only if its
expectation over correct answers is zero: c depends on what follows, so a baseline b(s) does not
drop out as it does in all answers, but pays -b(s) for being right (E[c b grad log pi] =
b grad P(right)). With V of all answers this teaches to be wrong wherever correct answers are the
long ones. Two baselines are sound:

    correct b = V_c(s) = E[G | s, correct], a LenVM trained on correct answers:
            E[c (G - V_c) | s] = 0 whatever P(right) is, at any lambda
    group   no critic: the mean of G over the correct answers of the prompt that are as far along,
            so the terms of correct answers sum to 0 at every position (`centre_correct`); the
            gradient is that of E[G | right]

and `all` is the V of all answers, as it was: an ablation.

Shapes: B sequences, T response positions. `correct` [B] is c: 0 wrong, 1 correct, between them
a partly correct answer's score.
"""

import torch
from torch import Tensor

from lenvm_rl.core.advantages import normalise_advantage
from lenvm_rl.core.checks import as_float, check_fraction
from lenvm_rl.core.meeting import ALONE, Meeting
from lenvm_rl.core.rows import Rows

BASELINES = ("correct", "group", "all")
CLAMP = 0.25
"""Share of a correct answer's lead that its length term may take. In a world where 90 % of long and
30 % of short answers are right, .5 costs 5 points of accuracy, .25 less than one
(scripts/bench/right_answers.py --right mostly_long)."""


def centre_correct(x: Tensor, mask: Tensor | Rows, correct: Tensor, groups: Tensor) -> Tensor:
    """`x` minus its mean over the correct answers of the group at the same number of tokens.

        x_it - sum_j c_j x_jt / sum_j c_j,     j: rows of i's group that have a token t

    Token t is the t-th generated one, wherever the mask has it. So `sum_i c_i out_it = 0` for
    every group and t: nothing is paid for being right, or for going on. A part of `x` that
    depends on group and t alone has no effect. A correct answer alone at its position gets 0.

    Args:
        x: [B, T], what follows from each token on, e.g. the return G_t.
        mask: [B, T], non-zero at generated tokens.
        correct: [B] c in [0, 1].
        groups: [B] integers, equal for completions of one prompt.
    Returns:
        [B, T] at least float32; 0 where masked and in rows with c = 0.
    """
    rows = Rows.of(mask, x=x)
    values = rows.pack(as_float(x, name="x"))
    c = rows.per_row(correct, name="correct").double()
    chosen = rows.spread(c > 0)
    mine = values[chosen].double()
    # One cell for every group and position that some correct answer of the group reaches.
    prompts, number = rows.numbered(groups)
    length = torch.where(c > 0, rows.lengths, 0)
    cells = length.new_zeros(prompts).scatter_reduce(0, number, length, "amax")
    start = torch.cat([cells.new_zeros(1), cells.cumsum(0)])
    cell = (rows.spread(rows.lengths + start[number]) - rows.left)[chosen]
    weight = rows.spread(c)[chosen]
    sums = torch.zeros(2, int(start[-1]), dtype=torch.float64, device=rows.device)
    sums[0].index_add_(0, cell, weight * mine)
    sums[1].index_add_(0, cell, weight)
    out = torch.zeros_like(values)
    out[chosen] = (mine - (sums[0] / sums[1])[cell]).to(values.dtype)
    return rows.unpack(out)


def correct_term(
    advantage: Tensor,
    mask: Tensor | Rows,
    correct: Tensor,
    *,
    how: str = "none",
    meet: Meeting = ALONE,
) -> Tensor:
    """A length advantage in correct answers alone, in the unit of their own spread.

    `normalise_advantage` over the tokens of rows with c > 0, times c: wrong answers, which get no
    term, have no say in its unit.

    Args:
        advantage: [B, T].
        mask: [B, T], non-zero at generated tokens.
        correct: [B] c in [0, 1].
        how: one of `NORMALISATIONS`.
        meet: with the workers that hold the other rows of the batch.
    Returns:
        [B, T] at least float32; 0 where masked and in rows with c = 0.
    """
    rows = Rows.of(mask, advantage=advantage)
    c = rows.per_row(correct, name="correct")
    a = rows.pack(as_float(advantage, name="advantage"))
    term = normalise_advantage(a, rows.flat, how=how, counted=c > 0, meet=meet)
    return rows.unpack(term * rows.spread(c).to(term.dtype))


def lead_over_wrong(task: Tensor, mask: Tensor | Rows, correct: Tensor, groups: Tensor) -> Tensor:
    """By how much the task advantage of a correct answer exceeds those of its group's wrong ones.

        lead_i = m_i - max_j max(m_j, S_j / L_i),     j: rows of i's group with c = 0

    S is the sum of the task advantage over a row's tokens, L their number, m = S / L. While every
    token of row i loses less than the lead, both its mean and its sum stay above those of every
    wrong row.

    Args:
        task: [B, T], the task advantage, which is all that wrong answers get.
        mask, correct, groups: as for `centre_correct`.
    Returns:
        [B] float64, at least 0; infinite in groups without a wrong answer.
    """
    rows = Rows.of(mask, task=task)
    total = rows.sums(rows.pack(as_float(task, name="task")))
    length = rows.lengths.clamp(min=1)
    c = rows.per_row(correct, name="correct")
    wrong = (c <= 0) & (rows.lengths > 0)
    prompts, number = rows.numbered(groups)
    best = torch.full((2, prompts), -torch.inf, dtype=torch.float64, device=task.device)
    for row, of_wrong in zip(best, (total / length, total), strict=True):
        row.scatter_reduce_(0, number[wrong], of_wrong[wrong], "amax")
    mean, summed = best[:, number]
    return (total / length - torch.maximum(mean, summed / length)).clamp(min=0.0)


def clamp_to_lead(
    term: Tensor,
    task: Tensor,
    mask: Tensor | Rows,
    correct: Tensor,
    groups: Tensor,
    *,
    share: float,
    meet: Meeting = ALONE,
) -> Tensor:
    """A scaled length term, bounded so that a correct answer stays above its group's wrong ones.

        -share * lead_i <= out_it <= share * lead_i,     lead_i as in `lead_over_wrong`

    So no token's length term takes more than `share` of what being right is worth, and the mean
    and the sum over a right row's tokens of `task + out` exceed those of every wrong row by
    (1 - share) of what they exceeded them by without it. Both sides are bounded alike, since a
    bound on one alone would move the mean. Where a group has no wrong answer, its rows have the
    mean lead of the batch's correct answers that have one: a prompt that happened to go well says
    no more against long answers than others do. A batch without a wrong answer is left alone.

    Args:
        term: [B, T], times its scale.
        task, mask, correct, groups: as for `lead_over_wrong`.
        share: in [0, 1].
        meet: with the workers that hold the other groups of the batch.
    Returns:
        [B, T] as `term`; 0 where masked.
    """
    rows = Rows.of(mask, term=term, task=task)
    check_fraction(share, name="share")
    lead = lead_over_wrong(task, mask, correct, groups)
    none_wrong = lead.isinf()
    of_mixed = lead[(rows.per_row(correct, name="correct") > 0) & ~none_wrong]
    total, count = meet.sum(torch.stack([of_mixed.sum(), of_mixed.new_tensor(len(of_mixed))]))
    term = rows.pack(term)
    if not count:
        return rows.unpack(torch.where(rows.spread(none_wrong), term, 0.0))
    lead = torch.where(none_wrong, total / count, lead)
    bound = rows.spread((share * lead).to(term.dtype))
    return rows.unpack(torch.minimum(torch.maximum(term, -bound), bound))
