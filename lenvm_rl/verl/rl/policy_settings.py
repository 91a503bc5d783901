"""Settings of `trainer_mode=lenvm`, and the combinations that are refused.

`PolicyLengthSettings` is the `lenvm:` block of a policy's training; `check_against_verl` looks at
what verl's own keys make of it. The workers of the length critic have a block of their own,
`length_critic:`, with the keys of verl's FSDP critic.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.utils import need_critic

from lenvm_rl.core import (
    BASELINES,
    BUDGETS,
    NORMALISATIONS,
    TRUNCATIONS,
    Controller,
    TermSettings,
    check_gamma,
    check_scale,
    make_controller,
)
from lenvm_rl.model import is_lenvm_checkpoint
from lenvm_rl.verl.pretrain.settings import (
    AUTO,
    check_choice,
    number,
    read_block,
    refuse,
    uses_tools,
)
from lenvm_rl.verl.rl.rollout_guidance import RolloutGuidance

logger = logging.getLogger(__name__)

USES = ("none", "objective", "shaping", "budget")
APPLIES_TO = ("all", "correct")

DISCOUNTING = ("gae", "reinforce_plus_plus")
"""verl's estimators that discount token rewards by algorithm.gamma; all others sum them."""


@dataclass(frozen=True, kw_only=True)
class PolicyLengthSettings(TermSettings):
    """The `lenvm:` block of the configuration: the term, and all around it. Checked on
    construction."""

    checkpoint: str | None = None
    """The LenVM, pretrained on the policy: directory, hub id, or `demo`. None: no length critic
    (use=none)."""
    scale: float | None = None
    """Constant scale of the length term; above 0 shortens. Or give a controller."""
    controller: dict[str, Any] | None = None
    """{kind: constant | linear | cosine | dual, ...}, see lenvm_rl.core.controllers."""
    gamma: float | str = AUTO
    """auto: the checkpoint's. A number is checked against it; a LenVM of the target distribution is
    read at it, as it has every gamma."""
    gamma_shape: float | str = AUTO
    """Discount of shaping. auto: algorithm.gamma where the estimator discounts, else 1."""
    baseline: str = AUTO
    """Against what a correct answer's length is judged with applies_to=correct, see
    `lenvm_rl.core.correct_answers`. correct: the LenVM, trained on correct answers (`lenvm grade`).
    group: the correct answers of its prompt, without the LenVM; lam has no effect. auto: `correct`
    where the LenVM is one of correct answers, else `group`. all: a LenVM of all answers, an
    ablation: where correct answers are the long ones it teaches to be wrong."""
    recalibrate: bool | str = AUTO
    """Refit the critic's logits, two numbers, to every batch before use. auto: where it is frozen
    and part of the advantage (objective, budget)."""
    refresh: bool = False
    """Train the length critic on every batch of rollouts with the pretraining loss; a LenVM of
    correct answers on the correct ones alone."""
    truncated: str = "drop"
    """What refresh makes of truncated completions: drop, bootstrap or censored."""
    budget_column: str | None = None
    """Column of the data with every prompt's budget (response tokens, EOS included)."""
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
    validate_drift: bool = True
    """Run the length critic in validations too, for val-lenvm/*: there it needs its memory beside
    the awake rollout engine's. Its errors on training rollouts are logged either way."""
    dump_dir: str | None = None
    """Directory that every step's tokens, values and advantages are written to (step_N.pt)."""

    def __post_init__(self) -> None:
        check_choice("lenvm.use", self.use, USES)
        check_choice("lenvm.normalise", self.normalise, NORMALISATIONS)
        check_choice("lenvm.applies_to", self.applies_to, APPLIES_TO)
        check_choice("lenvm.truncated", self.truncated, TRUNCATIONS)
        check_choice("lenvm.budget_kind", self.budget_kind, BUDGETS)
        if self.gamma != AUTO:
            object.__setattr__(self, "gamma", check_gamma(number("lenvm.gamma", self.gamma)))
        if self.gamma_shape != AUTO:
            shape = number("lenvm.gamma_shape", self.gamma_shape)
            object.__setattr__(self, "gamma_shape", 1.0 if shape == 1 else check_gamma(shape))
        if self.lam != AUTO and not 0 <= number("lenvm.lam", self.lam) <= 1:
            raise ValueError(f"lenvm.lam must be in [0, 1] or auto, got {self.lam}.")
        if not 0 < self.alarm_low < 1 < self.alarm_high:
            raise ValueError(
                f"lenvm.alarm_low={self.alarm_low}, lenvm.alarm_high={self.alarm_high}: they are "
                "multiples of the first mean length, one below and one above 1."
            )
        self._check_critic()
        self._check_correct()
        self._check_recalibration()
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

    def _check_correct(self) -> None:
        check_choice("lenvm.baseline", self.baseline, (AUTO, *BASELINES))
        if self.clamp is not None and not 0 <= number("lenvm.clamp", self.clamp) <= 1:
            raise ValueError(f"lenvm.clamp must be in [0, 1] or null, got {self.clamp}.")
        if self.applies_to == "all" and self.baseline not in (AUTO, "all"):
            raise ValueError(
                f"lenvm.baseline={self.baseline} with lenvm.applies_to=all: the term of all "
                "answers is measured against the LenVM's values of all answers. Leave "
                "lenvm.baseline=auto, or set lenvm.applies_to=correct."
            )
        if self.applies_to == "correct" and self.use == "shaping":
            raise ValueError(
                "lenvm.applies_to=correct with lenvm.use=shaping: a potential in some completions "
                "alone is none, and pays for the others. Set lenvm.applies_to=all, or use "
                "objective or budget."
            )

    def _check_recalibration(self) -> None:
        if self.recalibrate not in (True, False, AUTO):
            raise ValueError(
                f"lenvm.recalibrate must be true, false or auto, got {self.recalibrate!r}."
            )
        if self.recalibrate is True and self.use not in ("objective", "budget"):
            raise ValueError(
                f"lenvm.recalibrate=true with lenvm.use={self.use}: "
                + (
                    "a potential that moves is no longer one"
                    if self.use == "shaping"
                    else "the values enter no advantage"
                )
                + ". Leave lenvm.recalibrate=auto."
            )

    @property
    def recalibrates(self) -> bool:
        """Whether the critic's logits are refitted to every batch."""
        if self.recalibrate == AUTO:
            return self.use in ("objective", "budget") and not self.refresh
        return bool(self.recalibrate)

    def baseline_for(self, answers: str) -> str:
        """What stands for `baseline` beside a LenVM of `answers` (all, correct).

        Raises:
            ValueError: the LenVM is not one whose values the setting needs.
        """
        if self.use not in ("objective", "budget"):
            return "all"  # shaping takes any potential
        if self.applies_to == "all" or self.baseline == "all":
            if answers == "correct":
                raise ValueError(
                    f"lenvm.checkpoint={self.checkpoint} was trained on correct answers alone, but "
                    f"lenvm.applies_to={self.applies_to}, lenvm.baseline={self.baseline} measure "
                    "against values of all answers. Set lenvm.applies_to=correct and leave "
                    "lenvm.baseline=auto, or give a LenVM of all answers."
                )
            return "all"
        if self.baseline == "correct" and answers != "correct":
            raise ValueError(
                f"lenvm.baseline=correct, but lenvm.checkpoint={self.checkpoint} was trained "
                "on all answers: against their values a correct answer is punished for being as "
                "long as it has to be. Train one on correct answers (`lenvm grade` writes their "
                "rollout file, see recipes/pretrain), or set lenvm.baseline=group."
            )
        if self.baseline == AUTO:
            return "correct" if answers == "correct" else "group"
        return self.baseline

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
    refuse(_refusals(config, settings))
    aggregation = config.actor_rollout_ref.actor.loss_agg_mode
    if settings.use in ("objective", "budget") and aggregation == "seq-mean-token-mean":
        logger.warning(
            "actor_rollout_ref.actor.loss_agg_mode=%s divides every token's length advantage by "
            "the length of its own response: tokens of long responses count less, which weakens "
            "the pressure exactly where it is wanted. token-mean weighs all tokens alike.",
            aggregation,
        )


def _refusals(config: DictConfig, settings: PolicyLengthSettings) -> list[tuple[bool, str]]:
    """(what must hold, the sentence otherwise)."""
    rollout, algorithm = config.actor_rollout_ref.rollout, config.algorithm
    floor = (settings.controller or {}).get("accuracy_floor")
    filtered = algorithm.get("filter_groups") or {}
    mode = str(config.trainer.v1.trainer_mode)
    return [
        (
            settings.rollout_guidance is None or not mode.endswith("_async"),
            f"lenvm.rollout_guidance with trainer.v1.trainer_mode={mode}: an asynchronous trainer "
            "aborts responses and has them continued after the next update, and a continuation "
            "would count its tokens from 0. Set trainer_mode=lenvm, or do without guidance.",
        ),
        (
            not config.actor_rollout_ref.actor.checkpoint.get("async_save", False),
            "actor_rollout_ref.actor.checkpoint.async_save=true: the length critic's state would "
            "not belong to the weights beside it. Set it to false.",
        ),
        (
            not (settings.refresh and uses_tools(rollout)),
            "lenvm.refresh=true trains the LenVM on responses that are the policy's own words, but "
            f"rollout.multi_turn.enable={rollout.multi_turn.enable}, rollout.agent."
            f"default_agent_loop={rollout.agent.default_agent_loop} put a tool's answers among "
            "them. Set lenvm.refresh=false.",
        ),
        (
            floor is None or not filtered.get("enable", False),
            f"lenvm.controller has accuracy_floor={floor} with algorithm.filter_groups.enable="
            "true: groups that are all right or all wrong are filtered out, so the accuracy of "
            "the rest is near one half whatever the policy can do, and the floor would release "
            "the pressure for ever. Drop the floor, or the filter.",
        ),
        (
            not (need_critic(config) and is_lenvm_checkpoint(str(config.critic.model.path))),
            f"critic.model.path={config.critic.model.path} is a LenVM, whose values lie in "
            "(-1, 0): as verl's task critic it could not learn a reward's. Give the task critic "
            "the policy's own trunk (critic.model.path=${actor_rollout_ref.model.path}); the "
            "LenVM is lenvm.checkpoint.",
        ),
    ]
