"""What a worker of the length critic does with its share of a step, after its forward pass.

    outputs at the states of its completions -> values -> A_len -> advantages, written back

Shares are whole prompts, so what is judged within a prompt stays on one worker. Of the batch as a
whole only a few sums meet (`Meeting`): of the refit, of the term's unit, of the clamp's mean lead.
What comes back to the trainer is a `Report`: a few numbers per completion.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tensordict import TensorDict
from torch import Tensor

from lenvm_rl.core import (
    LengthValues,
    Meeting,
    Ranking,
    Recalibration,
    Rows,
    TermSettings,
    error_sums,
    length_term,
    read_critic,
    shaping_term,
    shortest_of_group,
)
from lenvm_rl.core.length_terms import Critic
from lenvm_rl.verl.rl.step_data import QueueData, flat, nested

TOKENS = ("prompts", "responses", "response_mask")
STASHED = "task_scores"
"""Column that keeps the task's token rewards while verl sees shaped ones."""


@dataclass(frozen=True)
class Share:
    """The completions of one worker, b of them, and what the trainer knows of each."""

    data: QueueData
    finished: Tensor
    """[b] bool."""
    correct: Tensor
    """[b] task scores."""
    groups: Tensor
    """[b] integers, equal for samples of a prompt."""
    budget: Tensor | None = None
    """[b] tokens, for use=budget."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done with the values; one for all workers."""

    settings: TermSettings = field(default_factory=TermSettings)
    """Of the term; use=none writes values alone."""
    scale: float = 0.0
    lam: float = 1.0
    """What stands for lam=auto."""
    baseline: str = "all"
    refit: bool = False
    gamma_shape: float = 1.0
    write: bool = True
    """False: errors alone, nothing is written."""
    keep_unit: bool = False
    """Also write the column `len_advantages`, A_len in its own unit."""


@dataclass(frozen=True)
class Report:
    """What a worker tells the trainer."""

    errors: Tensor
    """[b, 4] `error_sums`; 0 of truncated completions."""
    ranking: Ranking
    shaping: Tensor | None = None
    """[b] sum of the shaping rewards."""
    fit: Recalibration | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """`advantage_metrics` of the whole batch."""


@dataclass(frozen=True)
class States:
    """Outputs of a LenVM at the states of b completions."""

    rows: Rows
    """Of the N tokens that the policy wrote."""
    logits: Tensor
    """[N] before each of them."""
    ends: Tensor
    """[b] after each completion."""
    response: Rows
    """Of all tokens of the responses, a tool's among them."""
    written: Tensor
    """Of every one of those, whether the policy wrote it."""

    @classmethod
    def of(cls, outputs: Tensor, data: TensorDict) -> States:
        """Pick the states out of a forward pass.

        Args:
            outputs: nested [b, P + L], one output per token; rows that fill up may follow.
            data: the columns `TOKENS`.
        """
        mask, response = flat(data["response_mask"])
        count = len(response.lengths)
        values, offsets = outputs.values(), outputs.offsets()[:count]
        written = mask != 0
        last_of_prompt = offsets + data["prompts"].offsets().diff() - 1
        state = response.spread(last_of_prompt + response.lengths) - response.left
        return cls(
            Rows(response.sums(written).long()),
            values[state[written]],
            values[last_of_prompt + response.lengths],
            response,
            written,
        )

    def column(self, x: Tensor) -> Tensor:
        """Nested [b, L] of x [N]; 0 at tokens that the policy did not write."""
        out = x.new_zeros(len(self.written)).masked_scatter(self.written, x)
        return nested(out, self.response)


def take_step(plan: Plan, share: Share, states: States, critic: Critic, *, meet: Meeting) -> Report:
    """Values and the term of a share's completions, written to its data.

    Args:
        plan: for all workers.
        share: the completions of this one.
        states: the critic's outputs.
        critic: its configuration.
        meet: with the other workers, which make the same call.
    """
    rows = states.rows
    estimate = LengthValues.of_logits(states.logits, states.ends, critic)
    errors = error_sums(rows, estimate.values, estimate.left, gamma=critic.gamma)
    ranking = shortest_of_group(estimate.left, rows, share.finished, share.groups)
    report = Report(torch.where(share.finished[:, None], errors, 0.0), ranking)
    if not plan.write:
        return report
    columns = {"len_values": states.column(estimate.values)} if len(share.data.keys) else {}
    if plan.settings.use == "shaping":
        report, more = _shaped(plan, share, states, estimate, critic, report)
    elif plan.settings.use != "none":
        report, more = _with_term(plan, share, states, critic, report, meet)
    else:
        more = {}
    if columns:
        share.data.write(**columns, **more)
    return report


def _shaped(
    plan: Plan,
    share: Share,
    states: States,
    estimate: LengthValues,
    critic: Critic,
    report: Report,
) -> tuple[Report, dict[str, Tensor]]:
    rows = states.rows
    term = shaping_term(estimate, rows, share.finished, gamma=plan.gamma_shape, scale=plan.scale)
    report = Report(report.errors, report.ranking, shaping=rows.sums(term))
    if not share.data.keys:
        return report, {}
    column = share.data.read("rm_scores")["rm_scores"]
    scores, of_scores = flat(column)
    shaped = scores + states.column(term).values()
    return report, {"rm_scores": nested(shaped, of_scores), STASHED: column}


def _with_term(
    plan: Plan, share: Share, states: States, critic: Critic, report: Report, meet: Meeting
) -> tuple[Report, dict[str, Tensor]]:
    rows, known = states.rows, (states.rows, share.finished)
    estimate, fit = read_critic(
        critic, states.logits, states.ends, *known, share.correct, refit=plan.refit, meet=meet
    )
    task = trained = states.logits.new_zeros(len(rows))
    if share.data.keys:
        # The mask again: verl's rejection sampling may have taken tokens out of the loss.
        found = share.data.read("advantages", "response_mask")
        task, trained = (
            found[name].values()[states.written] for name in ("advantages", "response_mask")
        )
    term = length_term(
        plan.settings,
        estimate,
        *known,
        task,
        gamma=critic.gamma,
        scale=plan.scale,
        correct=share.correct,
        groups=share.groups,
        baseline=plan.baseline,
        budget=share.budget,
        trained=trained,
        lam=plan.lam,
        meet=meet,
    )
    report = Report(report.errors, report.ranking, fit=fit, metrics=term.metrics)
    columns = {"advantages": states.column(term.total)}
    if plan.keep_unit:
        columns["len_advantages"] = states.column(term.unit)
    return report, columns


def restore(share: Share) -> None:
    """Give the completions the task's token rewards back, which shaping replaced."""
    if share.data.keys:
        share.data.write(rm_scores=share.data.read(STASHED)[STASHED])
