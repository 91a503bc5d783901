"""What is compared: no length term, published length rewards, and LenVM in several forms.

Everything else of a run (data, optimiser, batch, updates, seeds) is the same. A method turns one
batch of graded completions into advantages per token. Published rewards go through GRPO:

    A = (r - mean_group) / (std_group + 1e-6)            the same at every token (verl's `grpo`)

and so does the bare answer, which all LenVM forms start from:

    objective   A + s A_len          A_len: GAE over -(1 - gamma), LenVM as baseline; `_refresh`
                                     with a LenVM that learns on
    right       A + s c A_len        in right answers alone, as the recipes do it: against a LenVM
                                     of right answers where --lenvm is one, else against the right
                                     answers of the prompt; bounded by the lead over wrong ones
    objective_correct, correct_lam0, correct_lam1
                A + s c A_len        the same against values of all answers, unbounded, at the run's
                                     lambda, 0 and 1: harmless only where right answers are short
    shaping     r + sum_t F_t        F_t = s (Phi_{t+1} - Phi_t), Phi = V: GRPO sums token rewards,
                                     and at gamma_shape 1 the sum is the same for all samples of a
                                     prompt (but cut ones), so nothing should change
    budget      A + s A_n            A_n: GAE towards -max(0, L - n) / n; n as a strength
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    LengthValues,
    TermSettings,
    combine,
    discounted_returns,
    length_term,
    logit_to_value,
    recalibrate,
    shaping_rewards,
    value_to_logit,
)
from reward_fns import LENGTH_REWARDS, BoundReward
from scripts.bench.grpo.strengths import STRENGTHS

NONE = "none"
LENVM = {
    "objective": ("scale", (0.1, 0.3, 1.0)),
    "correct": ("scale", (0.3, 1.0, 3.0)),
    "objective_correct": ("scale", (0.3, 1.0, 3.0)),
    "objective_refresh": ("scale", (0.1, 0.3, 1.0)),
    "correct_lam0": ("scale", (0.3, 1.0, 3.0)),
    "correct_lam1": ("scale", (0.3, 1.0, 3.0)),
    "shaping": ("scale", (0.1, 0.3, 1.0)),
    "budget": ("tokens", (56.0, 40.0, 28.0)),
}
"""Forms, what their strength is, and its three values from weak to strong."""
BUDGET_SCALE = 1.0
IN_STD = {"normalise": "batch_std"}
"""Terms are in units of their own spread."""
LAMBDAS = {"correct_lam0": 0.0, "correct_lam1": 1.0}
"""Forms with a lambda of their own; the others take the run's."""
DEFAULT = (
    NONE,
    *("kimi", "l1_max", "arora_zanette", "dapo_overlong", "truncation", "laser"),
    *("shorter_better", "alp"),
    *("objective", "correct", "objective_refresh", "shaping", "budget"),
)
"""What is compared unless names are given; ALL stands for everything there is."""
LEVELS = ("0", "1", "2", "3")
ALL = "all"


@dataclass(frozen=True)
class Method:
    """One line of the table: a name and a strength."""

    name: str
    level: int = 0
    """0, 1, 2: weak, middle, strong; 3: as far beyond strong as strong is beyond middle."""

    @property
    def family(self) -> str:
        """none, published or lenvm."""
        if self.name == NONE:
            return NONE
        return "lenvm" if self.name in LENVM else "published"

    @property
    def strength(self) -> float | None:
        """Value of the method's own strength parameter."""
        if self.family == NONE:
            return None
        lenvm = self.family == "lenvm"
        values = LENVM[self.name][1] if lenvm else STRENGTHS[self.name].values
        if self.level < len(values):
            return values[self.level]
        beyond = values[2] * values[2] / values[1]
        return round(beyond) if isinstance(values[2], int) else beyond

    @property
    def label(self) -> str:
        """Name and strength."""
        return self.name + ("" if self.strength is None else f"-{self.strength:g}")

    @property
    def refreshes(self) -> bool:
        """Whether the LenVM is trained on every batch of the run."""
        return self.name.endswith("_refresh")

    def bind(self) -> BoundReward | None:
        """The published reward with its parameters; None for the others."""
        if self.family != "published":
            return None
        return LENGTH_REWARDS[self.name].bind(**STRENGTHS[self.name].params(self.strength))


def all_methods(names: Sequence[str] | None, levels: Sequence[int]) -> list[Method]:
    """`none` once, the others at every level, or at the one that `name:level` says.

    Args:
        names: methods; None is `DEFAULT`, `["all"]` everything.
        levels: 0 .. 3 for names without a level of their own.
    Raises:
        ValueError: an unknown name or level.
    """
    known = [NONE, *LENGTH_REWARDS, *LENVM]
    wanted = list(DEFAULT) if names is None else known if list(names) == [ALL] else names
    methods = []
    for text in wanted:
        name, colon, level = text.partition(":")
        if name not in known or (colon and level not in LEVELS):
            raise ValueError(
                f"unknown method {text!r}: use {ALL}, or some of {', '.join(known)}; name:0, "
                "name:1 and name:2 are its weak, middle and strong form, name:3 one beyond"
            )
        own = [int(level)] if colon else levels if name != NONE else levels[:1]
        methods += [Method(name, k) for k in own]
    return sorted(set(methods), key=lambda m: (known.index(m.name), m.level))


@dataclass(frozen=True)
class Graded:
    """A batch of B completions on a grid of T positions; position t of a response is s_t."""

    correct: list[float]
    lengths: list[int]
    prompt_ids: list[str]
    """Rows of a prompt lie together."""
    mask: Tensor
    """[B, T] states s_0 .. s_{L-1}."""
    finished: Tensor
    """[B] bool."""
    values: Tensor
    """[B, T] V of the length value model."""
    lengths_left: Tensor
    """[B, T] its remaining lengths in tokens."""
    gamma: float
    """Discount of the values."""
    answers: str
    """Whose lengths the values are of: all or right."""
    columns: dict[str, dict[str, Any]]
    """Per prompt: what published rewards ask of the data."""


def task_advantage(rewards: Sequence[float], prompt_ids: Sequence[str]) -> Tensor:
    """GRPO's advantage of every completion, [B]; 0 in groups whose rewards are all equal."""
    r = torch.tensor(rewards, dtype=torch.float32)
    out = torch.zeros_like(r)
    for prompt in dict.fromkeys(prompt_ids):
        rows = torch.tensor([i for i, p in enumerate(prompt_ids) if p == prompt])
        group = r[rows]
        out[rows] = (group - group.mean()) / (group.std(unbiased=True) + 1e-6)
    return out


def rewards_of(batch: Graded, bound: BoundReward | None) -> list[float]:
    """The answer's score, or the published reward; stateful ones then learn from the batch."""
    if bound is None:
        return batch.correct
    rewards: list[float] = []
    for prompt in dict.fromkeys(batch.prompt_ids):
        rows = [i for i, p in enumerate(batch.prompt_ids) if p == prompt]
        rewards += bound.group_rewards(
            [batch.correct[i] for i in rows],
            [batch.lengths[i] for i in rows],
            prompt_id=prompt,
            columns=batch.columns[prompt],
        )
    bound.update(batch.correct, batch.lengths, batch.prompt_ids)
    return rewards


def advantages(method: Method, batch: Graded, bound: BoundReward | None, *, lam: float) -> Tensor:
    """[B, T] advantages of the batch under a method."""
    rewards = rewards_of(batch, bound)
    scale = float(method.strength or 0)
    if method.name == "shaping":
        term = shaping_rewards(batch.values, batch.mask, batch.finished, gamma=1.0, scale=scale)
        rewards = [r + f for r, f in zip(rewards, term.sum(1).tolist(), strict=True)]
    if method.family != "lenvm" or method.name == "shaping":
        return task_advantage(rewards, batch.prompt_ids)[:, None] * batch.mask
    if method.name == "budget":
        settings = TermSettings(use="budget", budget_kind="at_most", lam=lam)
        budget = torch.full((len(batch.lengths),), scale)
        return with_term(batch, settings, scale=BUDGET_SCALE, budget=budget)
    if method.name == "correct":
        return with_term(batch, TermSettings(applies_to="correct", **IN_STD), scale=scale)
    settings = TermSettings(lam=LAMBDAS.get(method.name, lam), **IN_STD)
    in_correct = method.name.endswith("_correct") or method.name in LAMBDAS
    return with_term(batch, settings, scale=scale, in_correct=in_correct)


def with_term(
    batch: Graded,
    settings: TermSettings,
    *,
    scale: float,
    budget: Tensor | None = None,
    in_correct: bool = False,
) -> Tensor:
    """[B, T] GRPO's advantage of the answer and a length term (`lenvm_rl.core.length_term`).

    Args:
        settings: of the term. With applies_to=correct against values of correct answers, refitted,
            where the LenVM is one of those, else against the correct answers of the prompt.
        scale: of the term.
        budget: [B] tokens, for use=budget.
        in_correct: a term of all answers, in its own unit, is then left out of wrong ones.
    """
    correct = torch.tensor(batch.correct)
    estimate, baseline = LengthValues(batch.values, batch.lengths_left), "all"
    if settings.applies_to == "correct":
        baseline = "correct" if batch.answers == "correct" else "group"
    if baseline == "correct":
        estimate = _refitted(batch, correct)
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(batch.prompt_ids))}
    task = task_advantage(batch.correct, batch.prompt_ids)[:, None] * batch.mask
    term = length_term(
        settings,
        estimate,
        batch.mask,
        batch.finished,
        task,
        gamma=batch.gamma,
        scale=scale,
        correct=correct,
        groups=torch.tensor([number[prompt] for prompt in batch.prompt_ids]),
        baseline=baseline,
        budget=budget,
    )
    if in_correct:
        return combine(task, term.unit, batch.mask, scale=scale * correct[:, None])
    return term.total


def _refitted(batch: Graded, correct: Tensor) -> LengthValues:
    """Values that fit the correct answers of the batch; those at truncated ends are not known."""
    logits, counted = value_to_logit(batch.values), batch.finished & (correct > 0)
    returns = discounted_returns(batch.mask, gamma=batch.gamma)
    fit = recalibrate(logits, returns, batch.mask, counted=counted)
    return LengthValues(logit_to_value(fit(logits)), batch.lengths_left)
