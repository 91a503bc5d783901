"""The length term of a batch: from a length critic's outputs to what joins the task advantage.

    logits -> refit (optional) -> values and lengths left -> A_len in its own unit -> scale -> clamp
    A = A_task + scale * A_len

No trainer and no queue: verl's trainer mode and the benchmark call the same functions. B
completions, T response positions; position t is the state before token t, and column T + 1 of the
logits holds the state after a row's last token, which is where a truncated completion ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lenvm_rl.core.advantages import (
    combine,
    lam_for_length,
    length_advantage,
    normalise_advantage,
)
from lenvm_rl.core.correct_answers import CLAMP, centre_correct, clamp_to_lead, correct_term
from lenvm_rl.core.losses import masked_mean
from lenvm_rl.core.recalibration import Recalibration, recalibrate
from lenvm_rl.core.returns import discounted_returns
from lenvm_rl.core.shaping import budget_advantage, shaping_rewards
from lenvm_rl.core.targets import OF_VALUES, predicted_length, value_of_logit
from lenvm_rl.core.values import length_to_logit, logit_to_length, logit_to_value

AUTO = "auto"


class Critic(Protocol):
    """What is read of a length critic's configuration."""

    gamma: float
    target: str
    length_scale: float | None
    answers: str
    """Whose lengths it has learnt: all, or correct."""


@dataclass(frozen=True, kw_only=True)
class TermSettings:
    """Which length term, and in which unit."""

    use: str = "objective"
    """objective: A_task + scale * A_len. shaping: a potential in the token rewards. budget:
    A_task + scale * the advantage for meeting the prompt's budget. none: values are only logged."""
    lam: float | str = AUTO
    """Lambda of the length advantage in [0, 1]; the task's is algorithm.lam. auto: by the mean
    length of the completions that get the term, step by step (`lam_for_length`)."""
    normalise: str = "none"
    """none, or batch_std: divide the length advantage by its own standard deviation, over the
    completions that get the term."""
    applies_to: str = "all"
    """all: every completion gets the length term. correct: each gets it times its task score (the
    grader's `acc`, else its reward, within 0..1), so wrong answers are not pushed to be short."""
    clamp: float | None = CLAMP
    """With applies_to=correct: the largest share, in [0, 1], that the length term of a token may
    take of its answer's lead over the wrong answers of the prompt. null: no bound (an ablation)."""
    budget_kind: str = "equal"
    """equal: meet the budget. at_most: stay within it."""


@dataclass(frozen=True)
class LengthValues:
    """What the length critic says of a batch."""

    values: Tensor
    """[B, T] V(s_t) in [-1, 0]."""
    left: Tensor
    """[B, T] expected tokens still to come."""
    end_value: Tensor | None = None
    """[B] V of the state after the last token; None where it is not known."""
    end_left: Tensor | None = None
    """[B] tokens still to come there."""

    @classmethod
    def of_logits(cls, logits: Tensor, lengths: Tensor, critic: Critic) -> LengthValues:
        """Read raw head outputs.

        Args:
            logits: [B, T + 1] z at s_0 .. s_L, anything beyond.
            lengths: [B] response tokens L.
            critic: its gamma, target and length_scale.
        """
        into = {"target": critic.target, "gamma": critic.gamma, "length_scale": critic.length_scale}
        return cls._at(value_of_logit(logits, **into), predicted_length(logits, **into), lengths)

    @classmethod
    def refitted(
        cls, logits: Tensor, lengths: Tensor, critic: Critic, fitted: Tensor
    ) -> tuple[LengthValues, Recalibration]:
        """As `of_logits`, made to fit the completions at the tokens `fitted` [B, T] first.

        Outputs of other targets are read as the logit z of their value, V = -sigmoid(z).
        """
        gamma = critic.gamma
        if critic.target not in OF_VALUES:
            left = predicted_length(
                logits, target=critic.target, gamma=gamma, length_scale=critic.length_scale
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


def read_critic(
    critic: Critic,
    logits: Tensor,
    lengths: Tensor,
    mask: Tensor,
    finished: Tensor,
    correct: Tensor,
    *,
    refit: bool,
) -> tuple[LengthValues, Recalibration | None]:
    """What the critic's outputs say, and what they were refitted by.

    Args:
        critic: its configuration.
        logits: [B, T + 1], raw outputs at s_0 .. s_L.
        lengths: [B], response tokens L.
        mask: [B, T], tokens of the policy.
        finished: [B] bool.
        correct: [B] task scores.
        refit: fit the outputs first to the completions that ended, those that are correct where
            the critic is one of correct answers.
    """
    if not refit:
        return LengthValues.of_logits(logits, lengths, critic), None
    known = finished & (correct > 0) if critic.answers == "correct" else finished
    return LengthValues.refitted(logits, lengths, critic, (mask != 0) & known[:, None])


@dataclass(frozen=True)
class LengthTerm:
    """The length term of a batch."""

    unit: Tensor
    """[B, T] A_len in its own unit."""
    scaled: Tensor
    """[B, T] what is added to the task advantage: times the scale, within the clamp."""
    total: Tensor
    """[B, T] task advantage and length term."""
    metrics: dict[str, float]
    """Sizes of the two terms, see `advantage_metrics`."""


def length_term(
    settings: TermSettings,
    estimate: LengthValues,
    mask: Tensor,
    finished: Tensor,
    task: Tensor,
    *,
    gamma: float,
    scale: float,
    correct: Tensor | None = None,
    groups: Tensor | None = None,
    baseline: str = "all",
    budget: Tensor | None = None,
    trained: Tensor | None = None,
) -> LengthTerm:
    """From values to advantages: the term in its unit, its scale, its clamp, the sum.

    Args:
        settings: of the term.
        estimate: of the length critic.
        mask: [B, T], tokens of the policy.
        finished: [B] bool.
        task: [B, T], the task advantage.
        gamma: the critic's.
        scale: of the term.
        correct: [B] task scores, for applies_to=correct.
        groups: [B] integers, equal for samples of a prompt, for applies_to=correct.
        baseline: one of lenvm_rl.core.BASELINES.
        budget: [B] tokens, for use=budget.
        trained: [B, T], the tokens that are trained on; None: those of `mask`.
    """
    unit = advantage_term(
        settings,
        estimate,
        mask,
        finished,
        gamma=gamma,
        budget=budget,
        correct=correct,
        groups=groups,
        baseline=baseline,
    )
    scaled = scale * unit
    trained = mask if trained is None else trained
    if settings.applies_to == "correct" and settings.clamp is not None:
        assert groups is not None
        weights = weights_of(settings, correct, mask)
        share = float(settings.clamp)
        scaled = clamp_to_lead(scaled, task, trained, weights, groups, share=share)
    total = combine(task, scaled, trained, scale=1.0).to(task.dtype)
    return LengthTerm(unit, scaled, total, advantage_metrics(task, scaled, trained))


def advantage_term(
    settings: TermSettings,
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

    Arguments are those of `length_term`.
    """
    weights = weights_of(settings, correct, mask)
    by_group = baseline == "group"
    lam = 1.0 if by_group else lambda_of(settings, mask, weights)
    values, left = estimate.values, estimate.left
    if by_group:
        # It is the returns that are centred: with values in them a token would be paid for where
        # its own answer stands among right and wrong ones.
        values, left = torch.zeros_like(values), torch.zeros_like(left)
    if settings.use == "budget":
        assert budget is not None
        kind, end = settings.budget_kind, estimate.end_left
        term = budget_advantage(left, mask, finished, budget, kind=kind, lam=lam, end_left=end)
    else:
        end = estimate.end_value
        term = length_advantage(values, mask, finished, gamma=gamma, lam=lam, end_value=end)
    if settings.applies_to == "all":
        return normalise_advantage(term, mask, how=settings.normalise)
    if by_group:
        assert groups is not None
        term = centre_correct(term, mask, weights, groups)
    return correct_term(term, mask, weights, how=settings.normalise)


def weights_of(settings: TermSettings, correct: Tensor | None, mask: Tensor) -> Tensor:
    """[B] how much of the length term each completion gets: 1, or its task score within 0..1."""
    if settings.applies_to == "all":
        return torch.ones(len(mask), device=mask.device)
    assert correct is not None
    return correct.float().clamp(0.0, 1.0)


def lambda_of(settings: TermSettings, mask: Tensor, weights: Tensor) -> float:
    """lam; auto: by the mean length of the completions that get the term, 1 where none does."""
    if settings.lam != AUTO:
        return float(settings.lam)
    lengths = (mask != 0).sum(1)[weights > 0].double()
    return lam_for_length(lengths.mean().item()) if len(lengths) else 1.0


def shaping_term(
    estimate: LengthValues, mask: Tensor, finished: Tensor, *, gamma: float, scale: float
) -> Tensor:
    """Token rewards [B, T] of `use=shaping`, scale included."""
    end = estimate.end_value
    return shaping_rewards(
        estimate.values, mask, finished, gamma=gamma, scale=scale, end_potential=end
    )


def advantage_metrics(task: Tensor, scaled: Tensor, mask: Tensor) -> dict[str, float]:
    """Sizes of the two terms of the advantage, over the tokens of `mask`.

    Returns:
        task_advantage_rms, advantage_rms (the scaled length term), advantage_share (the second's
        share of their sum); empty without a token.
    """
    tokens = (mask != 0).sum()
    if not tokens:
        return {}
    sizes = [
        masked_mean(term.double() ** 2, mask, denom=tokens).sqrt().item() for term in (task, scaled)
    ]
    total = sum(sizes)
    return {
        "task_advantage_rms": sizes[0],
        "advantage_rms": sizes[1],
        "advantage_share": sizes[1] / total if total else 0.0,
    }
