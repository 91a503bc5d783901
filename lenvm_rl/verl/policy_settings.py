"""What can be set for `trainer_mode=lenvm`, and which combinations are refused?

`PolicyLengthSettings` is the `lenvm:` block of a policy's training; `check_against_verl` looks at
what verl's own keys make of it. The workers of the length critic have a block of their own,
`length_critic:`, with the keys of verl's FSDP critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from lenvm_rl.core import (
    BUDGETS,
    CUTS,
    NORMALISATIONS,
    Controller,
    check_gamma,
    check_scale,
    make_controller,
)
from lenvm_rl.verl.rollout_guidance import RolloutGuidance
from lenvm_rl.verl.settings import AUTO, check_choice, number, read_block

USES = ("none", "objective", "shaping", "budget")
APPLIES_TO = ("all", "right")

DISCOUNTING = ("gae", "reinforce_plus_plus")
"""verl's estimators that discount token rewards by algorithm.gamma; all others sum them."""


@dataclass(frozen=True, kw_only=True)
class PolicyLengthSettings:
    """The `lenvm:` block of the configuration. Checked on construction."""

    checkpoint: str | None = None
    """Directory of the LenVM, pretrained on the policy. None: no length critic (use=none)."""
    use: str = "objective"
    """objective: A_task + scale * A_len. shaping: a potential in the token rewards. budget:
    A_task + scale * the advantage for meeting the prompt's budget. none: values are only logged."""
    scale: float | None = None
    """Constant scale of the length term; above 0 shortens. Or give a controller."""
    controller: dict[str, Any] | None = None
    """{kind: constant | linear | cosine | dual, ...}, see lenvm_rl.core.controllers."""
    gamma: float | str = AUTO
    """auto: the checkpoint's. A number is checked against it."""
    lam: float = 0.95
    """Lambda of the length advantage in [0, 1]; the task's is algorithm.lam."""
    gamma_shape: float | str = AUTO
    """Discount of shaping. auto: algorithm.gamma where the estimator discounts, else 1."""
    normalise: str = "none"
    """none, or batch_std: divide the length advantage by its own standard deviation."""
    applies_to: str = "all"
    """all: every completion gets the length term. right: each gets it times its task score (the
    grader's `acc`, else its reward, within 0..1), so wrong answers are not pushed to be short."""
    refresh: bool = False
    """Train the length critic on every batch of rollouts with the pretraining loss."""
    cut: str = "drop"
    """What refresh makes of cut completions: drop, bootstrap or censored."""
    budget_column: str | None = None
    """Column of the data with every prompt's budget (response tokens, EOS included)."""
    budget_kind: str = "equal"
    """equal: meet the budget. at_most: stay within it."""
    rollout_guidance: dict[str, Any] | None = None
    """{mode, target | column | beta | scale, ...}: vLLM's training rollouts are guided by the
    LenVM, see `rollout_guidance`."""
    length_reward: dict[str, Any] | None = None
    """{name: one of reward_fns.LENGTH_REWARDS, ...its parameters}: replaces the task score by a
    published length reward, over the samples of a prompt."""
    alarm_low: float = 0.33
    """Alarm when the mean length falls below this share of its first value."""
    alarm_high: float = 3.0
    """Alarm when it rises above this multiple."""
    dump_dir: str | None = None
    """Directory that every step's tokens, values and advantages are written to (step_N.pt)."""

    def __post_init__(self) -> None:
        check_choice("lenvm.use", self.use, USES)
        check_choice("lenvm.normalise", self.normalise, NORMALISATIONS)
        check_choice("lenvm.applies_to", self.applies_to, APPLIES_TO)
        check_choice("lenvm.cut", self.cut, CUTS)
        check_choice("lenvm.budget_kind", self.budget_kind, BUDGETS)
        if self.gamma != AUTO:
            object.__setattr__(self, "gamma", check_gamma(number("lenvm.gamma", self.gamma)))
        if self.gamma_shape != AUTO:
            shape = number("lenvm.gamma_shape", self.gamma_shape)
            object.__setattr__(self, "gamma_shape", 1.0 if shape == 1 else check_gamma(shape))
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lenvm.lam must be in [0, 1], got {self.lam}.")
        if not 0 < self.alarm_low < 1 < self.alarm_high:
            raise ValueError(
                f"lenvm.alarm_low={self.alarm_low}, lenvm.alarm_high={self.alarm_high}: they are "
                "multiples of the first mean length, one below and one above 1."
            )
        self._check_critic()
        if self.applies_to == "right" and self.use == "shaping":
            raise ValueError(
                "lenvm.applies_to=right with lenvm.use=shaping: a potential in some completions "
                "alone is none, and pays for the others. Set lenvm.applies_to=all, or use "
                "objective or budget."
            )
        self._check_scale()
        self._check_budget()
        self.guidance()
        if self.length_reward is not None and "name" not in self.length_reward:
            raise ValueError(
                f"lenvm.length_reward={self.length_reward} has no name: write "
                "{name: kimi} or another of reward_fns.LENGTH_REWARDS."
            )

    def _check_critic(self) -> None:
        if self.checkpoint is None and (self.use != "none" or self.refresh):
            raise ValueError(
                f"lenvm.checkpoint is not set, but lenvm.use={self.use}, lenvm.refresh="
                f"{self.refresh} need a LenVM of this policy (recipes/pretrain makes one). For a "
                "run without a length critic set lenvm.use=none."
            )
        if self.use == "shaping" and self.refresh:
            raise ValueError(
                "lenvm.use=shaping with lenvm.refresh=true: a potential that moves is no longer "
                "one, and pays for its own drift. Use objective or budget with refresh."
            )

    def _check_scale(self) -> None:
        if self.use == "none":
            if self.scale is not None or self.controller is not None:
                raise ValueError(
                    f"lenvm.scale={self.scale}, lenvm.controller={self.controller} have no effect "
                    "with lenvm.use=none: remove them, or choose a use."
                )
            return
        if (self.scale is None) == (self.controller is None):
            raise ValueError(
                f"lenvm.scale={self.scale} and lenvm.controller={self.controller}: give exactly "
                "one of them, e.g. scale: 0.1."
            )
        if self.scale is not None:
            check_scale(self.scale, name="lenvm.scale")
        self.make_controller()

    def _check_budget(self) -> None:
        if (self.use == "budget") != (self.budget_column is not None):
            raise ValueError(
                f"lenvm.use={self.use}, lenvm.budget_column={self.budget_column}: use=budget reads "
                "each prompt's budget from a column of the data, and nothing else does. Set both "
                "or neither."
            )

    def guidance(self) -> RolloutGuidance | None:
        """How training rollouts are guided; raises as `RolloutGuidance.of` does."""
        return RolloutGuidance.of(self.rollout_guidance, self.checkpoint)

    def make_controller(self) -> Controller:
        """What sets the scale, at its start.

        Raises:
            ValueError: a controller without a kind, or settings it does not take.
        """
        if self.controller is None:
            return make_controller("constant", value=self.scale or 0.0)
        given = dict(self.controller)
        if "kind" not in given:
            raise ValueError(
                f"lenvm.controller={given} has no kind: constant, linear, cosine, dual."
            )
        return make_controller(given.pop("kind"), **given)


def read_policy_settings(config: DictConfig) -> PolicyLengthSettings:
    """The `lenvm:` block of a policy's configuration.

    Raises:
        ValueError: the block is missing, has an unknown key, or a value out of range.
    """
    given = read_block(config, PolicyLengthSettings, base="lenvm_ppo", recipe="grpo_length")
    return PolicyLengthSettings(**given)


def shaping_discount(settings: PolicyLengthSettings, algorithm: DictConfig) -> float:
    """The discount of the shaping term: that of the estimator.

    Raises:
        ValueError: another one is asked for; with the reason.
    """
    discounts = algorithm.adv_estimator in DISCOUNTING
    right = float(algorithm.gamma) if discounts else 1.0
    asked = right if settings.gamma_shape == AUTO else settings.gamma_shape
    if asked == right:
        return right
    if discounts:
        raise ValueError(
            f"lenvm.gamma_shape={asked}, algorithm.gamma={algorithm.gamma}: shaping leaves the "
            "order of policies alone only if rewards are discounted with the same gamma. Set both "
            "to one value."
        )
    raise ValueError(
        f"lenvm.gamma_shape={asked} with algorithm.adv_estimator={algorithm.adv_estimator}, which "
        "sums token rewards without discount: the sum of gamma * Phi(s') - Phi(s) then grows by "
        "(1 - gamma) per token, so even a perfect value pays for length (2,000 tokens at gamma "
        ".997: +6.0). Set lenvm.gamma_shape=1, or use=objective, which acts per token."
    )


def check_against_verl(config: DictConfig, settings: PolicyLengthSettings) -> None:
    """Refuse verl settings under which the block would not do what it says.

    Raises:
        ValueError: with the key, its value, the reason and the remedy.
    """
    if settings.use == "shaping":
        shaping_discount(settings, config.algorithm)
    guidance = settings.guidance()
    if guidance is not None:
        guidance.check(config)
    if config.actor_rollout_ref.actor.checkpoint.get("async_save", False):
        raise ValueError(
            "actor_rollout_ref.actor.checkpoint.async_save=true: the length critic's state would "
            "not belong to the weights beside it. Set it to false."
        )
