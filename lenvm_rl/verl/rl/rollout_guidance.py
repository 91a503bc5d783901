"""Rollouts whose length a LenVM guides while the policy trains: settings, and what must hold.

`lenvm.rollout_guidance: {mode: equal_soft, column: budget}` guides every training rollout in vLLM
(`lenvm_rl.vllm` has the logits processor; verl's server loads it by class path). Tokens are then
sampled from the guided distribution p', not from the policy. So the policy ratio must be

    pi_theta(x) / p'(x)

with the log-probabilities that vLLM sampled from: `calculate_log_probs` has them returned,
`bypass_mode` makes them verl's old log-probabilities. Validation is not guided: it measures the
policy itself.

Modes that take one token for certain (equal, at_least with extreme, a forced EOS) have p' = 1: the
ratio is the policy's own probability, never above 1, and nothing else is explored. tilt,
equal_soft and scale keep all candidates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.verl.pretrain.settings import refuse

ENGINE = "vllm"
PROCESSOR = "lenvm_rl.vllm:LengthGuidance"
"""Class path, for verl's vLLM server; this package never imports it."""
AGENT_LOOP = "lenvm_guided"


@dataclass(frozen=True)
class RolloutGuidance:
    """The block `lenvm.rollout_guidance`, checked."""

    settings: GuidanceSettings
    """What every request asks; its target is a placeholder where `column` has them."""
    column: str | None
    """Column of the data, or key of its extra_info, with every prompt's target in tokens."""
    checkpoint: str
    """Directory of the LenVM that guides; it stays as it is, also with refresh."""

    @classmethod
    def of(cls, block: Mapping[str, Any] | None, checkpoint: str | None) -> RolloutGuidance | None:
        """Read the block; None where there is none.

        Args:
            block: `mode`, the mode's number (`target`, `beta` or `scale`) or `column`, anything
                else of `lenvm_rl.guidance.GuidanceSettings`, and `checkpoint`.
            checkpoint: `lenvm.checkpoint`, which guides unless the block names another.
        Raises:
            ValueError: an unknown key, mode or value; a target and a column; no checkpoint.
        """
        if block is None:
            return None
        given = dict(block)
        column, checkpoint = given.pop("column", None), given.pop("checkpoint", checkpoint)
        name = "lenvm.rollout_guidance"
        if column is not None:
            if "target" in given:
                raise ValueError(
                    f"{name} has target={given['target']} and column={column}: every prompt's "
                    "target is either the same or its own. Keep one of them."
                )
            given["target"] = 1
        try:
            settings = GuidanceSettings.from_args({f"lenvm_{k}": v for k, v in given.items()})
        except ValueError as error:
            raise ValueError(f"{name}={dict(block)}: {error}") from error
        if settings is None:
            raise ValueError(f"{name}={dict(block)} guides nothing: give a mode, or remove it.")
        if checkpoint is None:
            raise ValueError(
                f"{name}={dict(block)} has no LenVM to guide with: set lenvm.checkpoint, or "
                "checkpoint in this block."
            )
        return cls(settings, column, str(checkpoint))

    def extra_args(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What one request carries as vLLM's `extra_args`.

        Args:
            row: the prompt's columns.
        Raises:
            ValueError: it has no target.
        """
        args = self.settings.to_args()
        if self.column is not None:
            info = row.get("extra_info") or {}
            cell = row.get(self.column, info.get(self.column))
            if cell is None:
                raise ValueError(
                    f"lenvm.rollout_guidance.column={self.column}: a prompt has no target there. "
                    "Give every prompt a number of tokens (recipes/budget/add_budgets.py)."
                )
            args["lenvm_target"] = int(cell)
        return args

    def check(self, config: DictConfig) -> None:
        """Refuse what would train on tokens of one distribution as if they were of another.

        Raises:
            ValueError: another engine than vLLM, or log-probabilities that are not the guided ones.
        """
        rollout, correction = config.actor_rollout_ref.rollout, config.algorithm.rollout_correction
        needed = (
            (
                rollout.name == ENGINE,
                f"actor_rollout_ref.rollout.name={rollout.name} cannot be guided: the logits "
                "processor is vLLM's. Set it to vllm, or remove lenvm.rollout_guidance.",
            ),
            (
                bool(rollout.calculate_log_probs),
                "actor_rollout_ref.rollout.calculate_log_probs=false: guided tokens come without "
                "the log-probabilities of the distribution they were drawn from, and the policy "
                "ratio would be wrong. Set it to true.",
            ),
            (
                bool(correction.get("bypass_mode", False)),
                "algorithm.rollout_correction.bypass_mode=false: the policy ratio would be taken "
                "against log-probabilities recomputed without guidance. Set it to true, so that "
                "those of the guided distribution are the old ones.",
            ),
            (
                rollout.get("logprobs_mode", "processed_logprobs") == "processed_logprobs",
                f"actor_rollout_ref.rollout.logprobs_mode={rollout.get('logprobs_mode')} returns "
                "log-probabilities from before guidance. Set it to processed_logprobs.",
            ),
            (
                not rollout.multi_turn.enable,
                "actor_rollout_ref.rollout.multi_turn.enable=true: a target is for one response, "
                "and conversations of several turns are not guided. Set it to false.",
            ),
        )
        highest = self.highest(config)
        target = 0 if self.column is not None else self.settings.target or 0
        needed += (
            (
                highest is None or target <= highest,
                f"lenvm.rollout_guidance has target={target} at least, but data."
                f"max_response_length={highest} truncates responses before. Raise that.",
            ),
        )
        refuse(needed)

    def highest(self, config: DictConfig) -> int | None:
        """Largest target that responses can reach; None where a larger one does no harm."""
        return config.data.max_response_length if self.settings.mode == "at_least" else None

    def into(self, config: DictConfig) -> None:
        """Have verl's vLLM server load the processor and its LenVM; changes `config` in place.

        Raises:
            ValueError: the engine is told to load other logits processors too.
        """
        rollout = config.actor_rollout_ref.rollout
        engine = dict(OmegaConf.select(rollout, f"engine_kwargs.{ENGINE}") or {})
        if engine.get("logits_processors"):
            raise ValueError(
                f"actor_rollout_ref.rollout.engine_kwargs.vllm.logits_processors="
                f"{engine['logits_processors']}: what they do to guided log-probabilities is "
                "unknown. Remove them, or lenvm.rollout_guidance."
            )
        # Strings: verl hands them to vLLM's command line as they are.
        engine["logits_processors"] = PROCESSOR
        options = {"checkpoint": self.checkpoint}
        engine["additional_config"] = json.dumps({"lenvm": options})
        with open_dict(config):
            OmegaConf.update(config, f"actor_rollout_ref.rollout.engine_kwargs.{ENGINE}", engine)
