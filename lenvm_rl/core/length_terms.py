"""The length term of a batch: from a length critic's outputs to what joins the task advantage.

    logits -> refit (optional) -> values and lengths left -> A_len in its own unit -> scale -> clamp
    A = A_task + scale * A_len

No trainer and no queue: verl's trainer mode and the benchmark call the same functions. B
completions, T response positions; position t is the state before token t. A row's last state, s_L
after its last token, is where a truncated completion ends.

Tensors [B, T] have the shape of the mask. With `Rows` in the mask's place they are [N], the tokens
of all rows one after another. Of a batch that lies on several workers each computes the rows it
has, whole groups where these matter; `Meeting` adds up the few numbers that are the batch's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from lenvm_rl.core.meeting import ALONE, Meeting
from lenvm_rl.core.recalibration import Recalibration, recalibrate
from lenvm_rl.core.returns import discounted_returns
from lenvm_rl.core.rows import Rows
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

    def packed(self, rows: Rows) -> LengthValues:
        """The same with values and lengths [N], of what has the shape of the rows' mask."""
        return replace(self, values=rows.pack(self.values), left=rows.pack(self.left))

    @classmethod
    def of_logits(cls, logits: Tensor, end_logits: Tensor | None, critic: Critic) -> LengthValues:
        """Read raw head outputs.

        Args:
            logits: [B, T] z at s_0 .. s_{L-1}.
            end_logits: [B] z at s_L; None where it is not known.
            critic: its gamma, target and length_scale.
        """
        into = {"target": critic.target, "gamma": critic.gamma, "length_scale": critic.length_scale}

        def read(z: Tensor) -> tuple[Tensor, Tensor]:
            return value_of_logit(z, **into), predicted_length(z, **into)

        return cls._of(read, logits, end_logits)

    @classmethod
    def refitted(
        cls,
        logits: Tensor,
        end_logits: Tensor | None,
        critic: Critic,
        mask: Tensor | Rows,
        counted: Tensor,
        *,
        meet: Meeting = ALONE,
    ) -> tuple[LengthValues, Recalibration]:
        """As `of_logits`, made to fit the completions `counted` [B] of the mask first.

        Outputs of other targets are read as the logit z of their value, V = -sigmoid(z).
        """
        gamma = critic.gamma

        def as_logit(z: Tensor) -> Tensor:
            if critic.target in OF_VALUES:
                return z
            scale = critic.length_scale
            left = predicted_length(z, target=critic.target, gamma=gamma, length_scale=scale)
            return length_to_logit(left, gamma=gamma)

        logits = as_logit(logits)
        returns = discounted_returns(mask, gamma=gamma)
        fit = recalibrate(logits, returns, mask, counted=counted, meet=meet)

        def read(z: Tensor) -> tuple[Tensor, Tensor]:
            return logit_to_value(fit(z)), logit_to_length(fit(z), gamma=gamma)

        end_logits = None if end_logits is None else as_logit(end_logits)
        return cls._of(read, logits, end_logits), fit

    @classmethod
    def _of(
        cls, read: Callable[[Tensor], tuple[Tensor, Tensor]], logits: Tensor, end: Tensor | None
    ) -> LengthValues:
        return cls(*read(logits), *((None, None) if end is None else read(end)))


def read_critic(
    critic: Critic,
    logits: Tensor,
    end_logits: Tensor | None,
    mask: Tensor | Rows,
    finished: Tensor,
    correct: Tensor,
    *,
    refit: bool,
    meet: Meeting = ALONE,
) -> tuple[LengthValues, Recalibration | None]:
    """What the critic's outputs say, and what they were refitted by.

    Args:
        critic: its configuration.
        logits: [B, T], raw outputs at s_0 .. s_{L-1}.
        end_logits: [B], raw outputs at s_L; None where they are not known.
        mask: [B, T], tokens of the policy.
        finished: [B] bool.
        correct: [B] task scores.
        refit: fit the outputs first to the completions that ended, those that are correct where
            the critic is one of correct answers.
        meet: with the workers that hold the other rows of the batch.
    """
    if not refit:
        return LengthValues.of_logits(logits, end_logits, critic), None
    known = finished & (correct > 0) if critic.answers == "correct" else finished
    return LengthValues.refitted(logits, end_logits, critic, mask, known, meet=meet)


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
    mask: Tensor | Rows,
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
    lam: float | None = None,
    meet: Meeting = ALONE,
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
        trained: [B, T], non-zero at tokens that are trained on; None: those of `mask`.
        lam: what stands for settings.lam=auto; None: `lambda_of` these rows.
        meet: with the workers that hold the other rows of the batch.
    """
    whole = Rows.of(mask, task=task)
    rows = whole.flat
    unit = advantage_term(
        settings,
        estimate.packed(whole),
        rows,
        finished,
        gamma=gamma,
        budget=budget,
        correct=correct,
        groups=groups,
        baseline=baseline,
        lam=lam,
        meet=meet,
    )
    mine = whole.pack(task)
    scaled = scale * unit
    if trained is None:
        counted, left = rows, slice(None)
    else:
        # verl's rejection sampling may have taken tokens out of the loss, or whole rows.
        left = whole.pack(trained) != 0
        counted = Rows(rows.sums(left).long())
    if settings.applies_to == "correct" and settings.clamp is not None:
        assert groups is not None
        weights, share = weights_of(settings, correct, rows), float(settings.clamp)
        bounded = clamp_to_lead(
            scaled[left], mine[left], counted, weights, groups, share=share, meet=meet
        )
        scaled = torch.zeros_like(scaled)
        scaled[left] = bounded
    total = torch.zeros_like(mine)
    total[left] = combine(mine[left], scaled[left], counted, scale=1.0).to(mine.dtype)
    metrics = advantage_metrics(mine[left], scaled[left], counted, meet=meet)
    return LengthTerm(whole.unpack(unit), whole.unpack(scaled), whole.unpack(total), metrics)


def advantage_term(
    settings: TermSettings,
    estimate: LengthValues,
    mask: Tensor | Rows,
    finished: Tensor,
    *,
    gamma: float,
    budget: Tensor | None = None,
    correct: Tensor | None = None,
    groups: Tensor | None = None,
    baseline: str = "all",
    lam: float | None = None,
    meet: Meeting = ALONE,
) -> Tensor:
    """A_len [B, T] of `use=objective` or `use=budget`, in its own unit, before the scale.

    Arguments are those of `length_term`.
    """
    weights = weights_of(settings, correct, mask)
    by_group = baseline == "group"
    if lam is None or settings.lam != AUTO:
        lam = lambda_of(settings, Rows.of(mask).lengths, weights)
    lam = 1.0 if by_group else lam
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
        return normalise_advantage(term, mask, how=settings.normalise, meet=meet)
    if by_group:
        assert groups is not None
        term = centre_correct(term, mask, weights, groups)
    return correct_term(term, mask, weights, how=settings.normalise, meet=meet)


def weights_of(settings: TermSettings, correct: Tensor | None, mask: Tensor | Rows) -> Tensor:
    """[B] how much of the length term each completion gets: 1, or its task score within 0..1."""
    if settings.applies_to == "all":
        return torch.ones(len(Rows.of(mask).lengths), device=mask.device)
    assert correct is not None
    return correct.float().clamp(0.0, 1.0)


def lambda_of(settings: TermSettings, lengths: Tensor, weights: Tensor) -> float:
    """lam; auto: by the mean length of the completions that get the term, 1 where none does.

    Args:
        settings: of the term.
        lengths: [B] tokens of the policy.
        weights: [B], see `weights_of`.
    """
    if settings.lam != AUTO:
        return float(settings.lam)
    lengths = lengths[weights > 0].double()
    return lam_for_length(lengths.mean().item()) if len(lengths) else 1.0


def shaping_term(
    estimate: LengthValues, mask: Tensor | Rows, finished: Tensor, *, gamma: float, scale: float
) -> Tensor:
    """Token rewards [B, T] of `use=shaping`, scale included."""
    end = estimate.end_value
    return shaping_rewards(
        estimate.values, mask, finished, gamma=gamma, scale=scale, end_potential=end
    )


def advantage_metrics(
    task: Tensor, scaled: Tensor, mask: Tensor | Rows, *, meet: Meeting = ALONE
) -> dict[str, float]:
    """Sizes of the two terms of the advantage, over the tokens of `mask`.

    Returns:
        task_advantage_rms, advantage_rms (the scaled length term), advantage_share (the second's
        share of their sum); empty without a token.
    """
    rows = Rows.of(mask, task=task, scaled=scaled)
    squares = [rows.pack(term).double().square().sum() for term in (task, scaled)]
    *squares, tokens = meet.sum(torch.stack([*squares, squares[0].new_tensor(len(rows))]))
    if not tokens:
        return {}
    sizes = [float((square / tokens).sqrt()) for square in squares]
    total = sum(sizes)
    return {
        "task_advantage_rms": sizes[0],
        "advantage_rms": sizes[1],
        "advantage_share": sizes[1] / total if total else 0.0,
    }
