"""Stand-ins for a LenVM's values that say how much of a length term its knowledge is worth.

    shuffled_values       those of another completion of the prompt that is as far along
    content_free_values   no LenVM: the mean of what is left to the prompt's completions there

A term that works as well with either does not need the LenVM. Both keep values where they were
read, so `length_advantage` takes them as any other.

Shapes: B sequences, T response positions; with `Rows` [N], see `rows`.
"""

import torch
from torch import Tensor

from lenvm_rl.core.checks import as_float
from lenvm_rl.core.correct_answers import centre_correct
from lenvm_rl.core.returns import discounted_returns
from lenvm_rl.core.rows import Rows


def shuffled_values(
    values: Tensor, mask: Tensor | Rows, groups: Tensor, generator: torch.Generator
) -> Tensor:
    """Values permuted among the completions of a prompt, position by position.

    Token t is the t-th generated one, wherever the mask has it. A completion that is alone at its
    position keeps its value.

    Args:
        values: [B, T], V(s_t).
        mask: [B, T], non-zero at generated tokens.
        groups: [B] integers, equal for completions of one prompt.
        generator: of the permutation.
    Returns:
        [B, T] at least float32; 0 where masked.
    """
    rows = Rows.of(mask, values=values)
    v = rows.pack(as_float(values, name="values"))
    cell = _cells(rows, groups)
    chance = torch.rand(len(v), generator=generator, dtype=torch.float64).to(v.device)
    # In the order of their cells, in which one is taken from where chance puts it.
    there, here = torch.argsort(cell + chance), torch.argsort(cell, stable=True)
    return rows.unpack(torch.empty_like(v).index_copy(0, here, v[there]))


def content_free_values(mask: Tensor | Rows, groups: Tensor, *, gamma: float) -> Tensor:
    """The mean discounted length that is left to the prompt's completions with a token t.

        V_it = mean over j in i's group with a token t of G_jt

    At lambda = 1 the advantage against it is critic-free credit per token: G_it minus that mean.

    Args:
        mask: [B, T], non-zero at generated tokens.
        groups: [B] integers, equal for completions of one prompt.
        gamma: per-token discount in (0, 1).
    Returns:
        [B, T] float32 in (-1, 0); 0 where masked.
    """
    rows = Rows.of(mask)
    returns = discounted_returns(rows.flat, gamma=gamma)
    everyone = torch.ones(len(rows.lengths), device=rows.device)
    return rows.unpack(returns - centre_correct(returns, rows.flat, everyone, groups))


def _cells(rows: Rows, groups: Tensor) -> Tensor:
    """[N] float64: a whole number for every group and position."""
    _, number = rows.numbered(groups)
    width = rows.lengths.max() if len(rows.lengths) else 0
    return (rows.spread(rows.lengths + number * width) - rows.left).double()
