"""For what objective is a model trained, with every `auto` decided, and does its input fit?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verl.workers.config import CriticConfig

from lenvm_rl.model import LengthValueConfig
from lenvm_rl.verl.facts import RolloutFacts
from lenvm_rl.verl.pretrain.loss import LengthValueLoss
from lenvm_rl.verl.pretrain.settings import AUTO, LengthValueSettings


def length_value_config(
    critic: CriticConfig, *, key: str = "critic.model.path"
) -> LengthValueConfig:
    """The configuration of the model at `critic.model.path`, which messages call `key`.

    Raises:
        ValueError: it is not a length value model.
    """
    config = critic.model.hf_config
    if not isinstance(config, LengthValueConfig):
        raise ValueError(
            f"{key}={critic.model.path} holds a {config.model_type!r} model "
            f"({config.architectures}), not a length value model. Make one from it with "
            "`lenvm init`, or convert a published one with `lenvm import`."
        )
    return config


def make_loss(
    settings: LengthValueSettings,
    stored: LengthValueConfig,
    facts: RolloutFacts | None,
    *,
    model: str,
) -> LengthValueLoss:
    """The objective of a run.

    Args:
        settings: the `lenvm:` block.
        stored: configuration of the model that training starts from.
        facts: of the training file; None when completions are yet to be sampled.
        model: what messages call the model.
    Raises:
        ValueError: gamma contradicts that of the model, or nothing says what it is.
    """
    return LengthValueLoss(
        gamma=_gamma(settings, stored, facts, model),
        target=settings.target or stored.target,
        length_scale=_length_scale(settings, stored, facts),
        lam=settings.lam,
        truncated=settings.truncated,
        boundary_weight=settings.boundary_weight,
    )


def describe(
    loss: LengthValueLoss,
    *,
    policy: dict[str, Any],
    sampling: dict[str, Any],
    answers: str = "all",
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a saved model says about itself, as `LengthValueWorker.describe` takes it."""
    return {
        "gamma": loss.gamma,
        "target": loss.target,
        "length_scale": loss.length_scale,
        "policy": policy,
        "sampling": sampling,
        "answers": answers,
        "training": training,
    }


@dataclass(frozen=True)
class RowLimits:
    """How many tokens one completion with its prompt may have."""

    micro_batch: int | None
    """Tokens of a micro-batch; None when micro-batches are counted in completions."""
    positions: int | None
    """Positions of the trunk; None when its configuration does not say."""
    key: str = "critic"
    """Block of the configuration that sets them."""

    @classmethod
    def of(
        cls, critic: CriticConfig, model: LengthValueConfig, *, key: str = "critic"
    ) -> RowLimits:
        """The limits of workers that the block `key` describes."""
        budget = None
        if critic.use_dynamic_bsz:
            budget = min(critic.ppo_max_token_len_per_gpu, critic.forward_max_token_len_per_gpu)
            budget *= critic.fsdp.ulysses_sequence_parallel_size
        return cls(budget, getattr(model, "max_position_embeddings", None), key)

    def check(self, tokens: int, what: str) -> None:
        """Raise ValueError when `what`, of `tokens` tokens, does not fit."""
        if self.micro_batch is not None and tokens > self.micro_batch:
            raise ValueError(
                f"{what} has {tokens} tokens, more than a micro-batch holds ({self.micro_batch}). "
                f"Raise {self.key}.ppo_max_token_len_per_gpu, and forward_max_token_len_per_gpu if "
                "set."
            )
        if self.positions is not None and tokens > self.positions:
            raise ValueError(
                f"{what} has {tokens} tokens, more than the trunk has positions "
                f"({self.positions}). Use a trunk with a longer context, or sample shorter."
            )


def _gamma(
    settings: LengthValueSettings,
    stored: LengthValueConfig,
    facts: RolloutFacts | None,
    model: str,
) -> float:
    if settings.gamma != AUTO:
        if stored.gamma is not None and abs(settings.gamma - stored.gamma) > 1e-12:
            raise ValueError(
                f"lenvm.gamma={settings.gamma}, but {model} has gamma {stored.gamma}. Leave "
                "lenvm.gamma=auto to go on with it, or make a new model with `lenvm init`."
            )
        return settings.gamma
    if stored.gamma is not None:
        return stored.gamma
    if facts is None:
        raise ValueError(
            "lenvm.gamma=auto has nothing to go by: the model has no gamma, and on_policy has no "
            "lengths yet. Set lenvm.gamma, e.g. 0.997 for up to 1,500 tokens."
        )
    return facts.suggested_gamma


def _length_scale(
    settings: LengthValueSettings, stored: LengthValueConfig, facts: RolloutFacts | None
) -> float | None:
    if settings.length_scale != AUTO:
        return float(settings.length_scale)
    if stored.length_scale is not None or facts is None:
        return stored.length_scale
    return float(facts.longest_response)
