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
    Recalibration,
    budget_advantage,
    centre_correct,
    clamp_to_lead,
    correct_term,
    discounted_returns,
    lam_for_length,
    length_advantage,
    length_to_logit,
    logit_to_length,
    logit_to_value,
    normalise_advantage,
    predicted_length,
    recalibrate,
    shaping_rewards,
    value_of_logit,
)
from lenvm_rl.model import LengthValueConfig
from lenvm_rl.rollouts import Rollout
from lenvm_rl.verl.pretrain.settings import AUTO
from lenvm_rl.verl.rl.policy_settings import PolicyLengthSettings

if TYPE_CHECKING:
    from lenvm_rl.verl.rl.length_critic import LengthCritic


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
        return cls._at(value_of_logit(logits, **space), predicted_length(logits, **space), lengths)

    @classmethod
    def refitted(
        cls, logits: Tensor, lengths: Tensor, model: LengthValueConfig, fitted: Tensor
    ) -> tuple[LengthValues, Recalibration]:
        """As `of_logits`, made to fit the completions at the tokens `fitted` [B, T] first.

        Outputs of other targets are read as the logit z of their value, V = -sigmoid(z).
        """
        gamma = model.gamma
        if model.target != "return":
            left = predicted_length(
                logits, target=model.target, gamma=gamma, length_scale=model.length_scale
            )
            logits = length_to_logit(left, gamma=gamma)
        fit = recalibrate(logits[:, :-1], discounted_returns(fitted, gamma=gamma), fitted)
        z = fit(logits)
        return cls._at(logit_to_value(z), logit_to_length(z, gamma=gamma), lengths), fit

    @classmethod
    def _at(cls, value: Tensor, left: Tensor, lengths: Tensor) -> LengthValues:
        end = lengths[:, None]
        return cls(
            values=value[:, :-1],
            left=left[:, :-1],
            end_value=value.gather(1, end)[:, 0],
            end_left=left.gather(1, end)[:, 0],
        )


def weights_of(settings: PolicyLengthSettings, correct: Tensor | None, mask: Tensor) -> Tensor:
    """[B] how much of the length term each completion gets: 1, or its task score within 0..1."""
    if settings.applies_to == "all":
        return torch.ones(len(mask), device=mask.device)
    assert correct is not None
    return correct.float().clamp(0.0, 1.0)


def lambda_of(settings: PolicyLengthSettings, mask: Tensor, weights: Tensor) -> float:
    """lam; auto: by the mean length of the completions that get the term, 1 where none does."""
    if settings.lam != AUTO:
        return float(settings.lam)
    lengths = (mask != 0).sum(1)[weights > 0].double()
    return lam_for_length(lengths.mean().item()) if len(lengths) else 1.0


def advantage_term(
    settings: PolicyLengthSettings,
    estimate: LengthValues,
    mask: Tensor,
    finished: Tensor,
    *,
    gamma: float,
    budget: Tensor | None = None,
    correct: Tensor | None = None,
    groups: Tensor | None = None,
    baseline: str = "all",
) -> Tensor:
    """A_len [B, T] of `use=objective` or `use=budget`, in its own unit, before the scale.

    Args:
        settings: use, lam, normalise, budget_kind, applies_to.
        estimate: of the length critic.
        mask: [B, T] tokens of the policy.
        finished: [B].
        gamma: the checkpoint's.
        budget: [B] tokens, for use=budget.
        correct: [B] task scores, for applies_to=correct.
        groups: [B] equal for samples of a prompt, for baseline=group.
        baseline: one of lenvm_rl.core.BASELINES, as `settings.baseline_for` decided.
    """
    weights = weights_of(settings, correct, mask)
    by_group = baseline == "group"
    lam = 1.0 if by_group else lambda_of(settings, mask, weights)
    # By group it is the returns that are centred: with values in them a token would be paid for
    # where its own answer stands among right and wrong ones.
    values, left = (
        (torch.zeros_like(estimate.values), torch.zeros_like(estimate.left))
        if by_group
        else (estimate.values, estimate.left)
    )
    if settings.use == "budget":
        assert budget is not None
        term = budget_advantage(
            left,
            mask,
            finished,
            budget,
            kind=settings.budget_kind,
            lam=lam,
            end_left=estimate.end_left,
        )
    else:
        term = length_advantage(
            values,
            mask,
            finished,
            gamma=gamma,
            lam=lam,
            end_value=estimate.end_value,
        )
    if settings.applies_to == "all":
        return normalise_advantage(term, mask, how=settings.normalise)
    if by_group:
        assert groups is not None
        term = centre_correct(term, mask, weights, groups)
    return correct_term(term, mask, weights, how=settings.normalise)


@dataclass(frozen=True)
class LengthTerm:
    """The length term of a batch."""

    unit: Tensor
    """[B, T] A_len in its own unit."""
    scaled: Tensor
    """[B, T] what is added to the task advantage: times the scale, within the clamp."""
    fit: Recalibration | None
    """What the critic's logits were refitted by, if they were."""


def length_term(
    settings: PolicyLengthSettings,
    model: LengthValueConfig,
    logits: Tensor,
    lengths: Tensor,
    mask: Tensor,
    finished: Tensor,
    task: Tensor,
    *,
    scale: float,
    correct: Tensor,
    groups: Tensor,
    budget: Tensor | None = None,
    trained: Tensor | None = None,
) -> LengthTerm:
    """From the critic's output to what is added to the task advantage: refit, term, clamp.

    Args:
        settings: the `lenvm:` block.
        model: of the critic: gamma, target, length_scale, answers.
        logits: [B, T + 1], raw outputs at s_0 .. s_L.
        lengths: [B], response tokens L.
        mask: [B, T], tokens of the policy.
        finished: [B] bool.
        task: [B, T], the task advantage.
        scale: of the term.
        correct: [B] task scores.
        groups: [B] integers, equal for samples of a prompt.
        budget: [B] tokens, for use=budget.
        trained: [B, T], the tokens that are trained on; None: those of `mask`.
    """
    fit = None
    if settings.recalibrates:
        known = finished & (correct > 0) if model.answers == "correct" else finished
        fitted = (mask != 0) & known[:, None]
        estimate, fit = LengthValues.refitted(logits, lengths, model, fitted)
    else:
        estimate = LengthValues.of_logits(logits, lengths, model)
    unit = advantage_term(
        settings,
        estimate,
        mask,
        finished,
        gamma=model.gamma,
        budget=budget,
        correct=correct,
        groups=groups,
        baseline=settings.baseline_for(model.answers),
    )
    scaled = scale * unit
    if settings.applies_to == "correct" and settings.clamp is not None:
        weights = weights_of(settings, correct, mask)
        counted = mask if trained is None else trained
        share = float(settings.clamp)
        scaled = clamp_to_lead(scaled, task, counted, weights, groups, share=share)
    return LengthTerm(unit, scaled, fit)


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
