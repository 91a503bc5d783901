"""What does the length critic's output mean for each token? Values, lengths, and the length term.

B completions, T response positions; position t is the state before token t, and column T + 1 of
the logits holds the state after a row's last token, which is where a cut completion ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lenvm_rl.core import (
    budget_advantage,
    length_advantage,
    normalise_advantage,
    predicted_length,
    shaping_rewards,
    value_of_logit,
)
from lenvm_rl.model import LengthValueConfig
from lenvm_rl.rollouts import Rollout
from lenvm_rl.verl.policy_settings import PolicyLengthSettings

if TYPE_CHECKING:
    from lenvm_rl.verl.length_critic import LengthCritic


@dataclass(frozen=True)
class LengthValues:
    """What the length critic says of a batch."""

    values: Tensor
    """[B, T] V(s_t) in [-1, 0]."""
    left: Tensor
    """[B, T] expected tokens still to come."""
    end_value: Tensor
    """[B] V of the state after the last token."""
    end_left: Tensor
    """[B] tokens still to come there."""

    @classmethod
    def of(cls, critic: LengthCritic, rows: Sequence[Rollout]) -> tuple[LengthValues, Tensor]:
        """The critic's estimate of these completions, and its raw outputs [B, T + 1]."""
        logits = critic.logits(rows)
        lengths = torch.tensor([row.length for row in rows])
        return cls.of_logits(logits, lengths, critic.model), logits

    @classmethod
    def of_logits(cls, logits: Tensor, lengths: Tensor, model: LengthValueConfig) -> LengthValues:
        """Read raw head outputs.

        Args:
            logits: [B, T + 1] z at s_0 .. s_L, anything beyond.
            lengths: [B] response tokens L.
            model: gamma, target and length_scale.
        """
        space = {
            "target": model.target,
            "gamma": model.gamma,
            "length_scale": model.length_scale,
        }
        value, left = value_of_logit(logits, **space), predicted_length(logits, **space)
        end = lengths[:, None]
        return cls(
            values=value[:, :-1],
            left=left[:, :-1],
            end_value=value.gather(1, end)[:, 0],
            end_left=left.gather(1, end)[:, 0],
        )


def advantage_term(
    settings: PolicyLengthSettings,
    estimate: LengthValues,
    mask: Tensor,
    finished: Tensor,
    *,
    gamma: float,
    budget: Tensor | None = None,
    correct: Tensor | None = None,
) -> Tensor:
    """A_len [B, T] of `use=objective` or `use=budget`, in its own unit, before the scale.

    Args:
        settings: use, lam, normalise, budget_kind, applies_to.
        estimate: of the length critic.
        mask: [B, T] tokens of the policy.
        finished: [B].
        gamma: the checkpoint's.
        budget: [B] tokens, for use=budget.
        correct: [B] task scores, for applies_to=right.
    """
    if settings.use == "budget":
        assert budget is not None
        term = budget_advantage(
            estimate.left,
            mask,
            finished,
            budget,
            kind=settings.budget_kind,
            lam=settings.lam,
            end_left=estimate.end_left,
        )
    else:
        term = length_advantage(
            estimate.values,
            mask,
            finished,
            gamma=gamma,
            lam=settings.lam,
            end_value=estimate.end_value,
        )
    term = normalise_advantage(term, mask, how=settings.normalise)
    if settings.applies_to == "right":
        assert correct is not None
        term = term * correct.to(term.dtype).clamp(0.0, 1.0)[:, None]
    return term


def shaping_term(
    estimate: LengthValues, mask: Tensor, finished: Tensor, *, gamma: float, scale: float
) -> Tensor:
    """Token rewards [B, T] of `use=shaping`, scale included."""
    return shaping_rewards(
        estimate.values,
        mask,
        finished,
        gamma=gamma,
        scale=scale,
        end_potential=estimate.end_value,
    )


def budgets_of(cells: list[object], column: str) -> Tensor:
    """[B] budgets in tokens from a column of the data; raises as `positive_numbers` does."""
    return positive_numbers(cells, "lenvm.budget_column", column)


def positive_numbers(cells: list[object], setting: str, column: str) -> Tensor:
    """[B] token counts from a column of the data that `setting` names.

    Raises:
        ValueError: missing or not positive, with how many and where the first is.
    """
    wrong = [i for i, cell in enumerate(cells) if not _is_budget(cell)]
    if wrong:
        raise ValueError(
            f"{setting}={column}: {len(wrong)} of {len(cells)} prompts have no budget "
            f"(row {wrong[0]}: {cells[wrong[0]]!r}). Give every prompt a number of response tokens "
            "above 0, or leave those prompts out."
        )
    return torch.tensor([float(cell) for cell in cells])  # type: ignore[arg-type]


def _is_budget(cell: object) -> bool:
    if isinstance(cell, bool) or not hasattr(cell, "__float__"):
        return False
    return 0.0 < float(cell) < float("inf")  # type: ignore[arg-type]
