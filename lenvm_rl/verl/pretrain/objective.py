"""The objective of pretraining, with every `auto` decided, as verl's loss function.

The model hands over its raw outputs (`config.head_output = "logit"`) in verl's field `values`, one
z per token of prompt and response, or the K outputs of a distribution. The state before response
token t is the token at position P + t - 1, so s_0 is the last prompt token and s_L the last
response token.

Targets are made here, from the lengths of the rows as they arrive, after every reordering: nothing
that verl does to a batch can leave a target behind that belongs to another row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import CriticConfig

from lenvm_rl.core import (
    DISTRIBUTION,
    LengthBins,
    boundary_weights,
    censored_squared_error,
    label,
    length_targets,
    masked_sum,
    predict,
    read_outputs,
    remaining_length,
    value_of_logit,
    value_targets,
)
from lenvm_rl.model import LengthValueConfig
from lenvm_rl.verl.pretrain.facts import RolloutFacts
from lenvm_rl.verl.pretrain.settings import AUTO, LengthValueSettings


@dataclass(frozen=True, kw_only=True)
class LengthValueLoss:
    """Squared error of the length value, token-mean over the global batch (LenVM eq. 9).

        loss = sum_t b_t w_t (p(z_t) - y_t)**2 / sum over the global batch of w

    w is 0 or 1; b is `boundary_weight` at s_0 and 1 elsewhere. Metrics leave b out. Of a
    distribution the error is the cross entropy `LengthDistribution.nll`, and `mse` that of V at
    gamma.
    Every token has the same weight whatever the micro-batching, the number of data-parallel
    workers and the packing. An instance is picklable and is verl's `loss_fn`.
    """

    gamma: float
    """Per-token discount in (0, 1)."""
    target: str = "return"
    """One of `lenvm_rl.core.TARGETS`."""
    bins: LengthBins | None = None
    """Of the target "distribution"."""
    length_scale: float | None = None
    """Tokens per unit, for the targets that are scaled."""
    lam: float = 1.0
    """Lambda of the returns; 1 is the closed form."""
    truncated: str = "drop"
    """Completions truncated by the token limit: drop, bootstrap or censored."""
    boundary_weight: float = 1.0
    """Weight of s_0, the state before the first response token, where others have 1."""

    def __call__(
        self, model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None
    ) -> tuple[Tensor, dict[str, Metric]]:
        """Loss of one micro-batch and its metrics, as verl's engines expect them.

        Args:
            model_output: "values": logits z, nested [B, P + L], or outputs [B, P + L, K].
            data: "prompt_length", "response_length" [B], "finished" [B], "row_weight" [B], and
                from the engine "batch_num_tokens" (sum of `loss_mask` over the global batch) and
                "dp_size" (FSDP averages gradients over that many workers).
        """
        outputs, mask = states_of_responses(
            model_output["values"], data["prompt_length"], data["response_length"]
        )
        logits = self.read(outputs)
        prediction = predict(logits[:, :-1], target=self.target)
        targets, weights, censored = self._targets(logits, mask, data["finished"])
        weights = weights * data["row_weight"].to(weights.dtype)[:, None]

        tokens = max(float(tu.get(data, "batch_num_tokens")), 1.0)
        scale = float(tu.get(data, "dp_size")) / tokens
        error = censored_squared_error(prediction, targets, censored, target=self.target)
        trained = error
        if self.bins is not None:
            trained = self.bins.of(outputs[:, :-1]).nll(remaining_length(mask), censored)
        states = boundary_weights(mask, boundary_weight=self.boundary_weight)
        loss = masked_sum(trained, weights * states) * scale
        with torch.no_grad():
            squared = masked_sum(error, weights) * scale
            absolute = masked_sum((prediction - targets).abs(), weights) * scale
            mean = masked_sum(prediction, weights) * scale
            metrics = {"mse": squared, "mae": absolute, "prediction_mean": mean}
            if self.bins is not None:
                metrics["nll"] = masked_sum(trained, weights) * scale
        return loss, {name: _summed(value) for name, value in metrics.items()}

    def read(self, outputs: Tensor) -> Tensor:
        """Logits z [...] of raw outputs, [...] or, without gradient, [..., K] of a distribution."""
        if self.bins is not None:
            outputs = outputs.detach()
        return read_outputs(outputs, bins=self.bins, gamma=self.gamma)

    def counted_tokens(self, length: int, finished: bool) -> int:
        """How many states of a completion of `length` tokens carry weight: 0 or `length`."""
        return length if finished or self.truncated != "drop" else 0

    def _targets(self, logits: Tensor, mask: Tensor, finished: Tensor) -> tuple[Tensor, ...]:
        if self.target != "return":
            lengths, weights, censored = length_targets(mask, finished, truncated=self.truncated)
            y = label(lengths, target=self.target, gamma=self.gamma, length_scale=self.length_scale)
            return y, weights, censored
        values = value_of_logit(logits.detach())
        last = mask.sum(1, keepdim=True)  # s_L, the state after the last token seen
        return value_targets(
            mask,
            finished,
            gamma=self.gamma,
            lam=self.lam,
            truncated=self.truncated,
            values=values[:, :-1],
            bootstrap_value=values.gather(1, last)[:, 0],
        )


def states_of_responses(
    values: Tensor, prompt_length: Tensor, response_length: Tensor
) -> tuple[Tensor, Tensor]:
    """The model's outputs at s_0 .. s_L of every row, padded on the right.

    Args:
        values: nested [B, P + L] or [B, P + L, K], the output of every token.
        prompt_length: [B] tokens, at least 1.
        response_length: [B] tokens, at least 1.
    Returns:
        states [B, T + 1] or [B, T + 1, K] with T the longest response (columns beyond L + 1 repeat
        some finite value), and the mask [B, T] of response tokens (int64).
    """
    flat, offsets = values.values(), values.offsets()
    first = offsets[:-1] + prompt_length.to(offsets.device) - 1
    length = response_length.to(offsets.device)
    column = torch.arange(int(length.max()) + 1, device=offsets.device)
    index = first[:, None] + torch.minimum(column[None], length[:, None])
    mask = (column[None, :-1] < length[:, None]).long()
    return flat[index], mask


def _summed(value: Tensor) -> Metric:
    # Each micro-batch holds its share of a mean over the global batch: shares are added up within
    # a worker. verl then averages over workers, which is why they were scaled by dp_size.
    return Metric(value=value, aggregation=AggregationType.SUM)


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
        ValueError: gamma contradicts that of the model, or nothing says what it is; a head of
            another number of outputs than the target has.
    """
    target = settings.target or stored.target
    if (target == DISTRIBUTION) != (stored.bins is not None):
        raise ValueError(
            f"lenvm.target={target}, but {model} has target {stored.target} with "
            f"{'one output' if stored.bins is None else 'an output for each bin'} per state. Leave "
            "lenvm.target out to go on with it, or make a new model with `lenvm init`."
        )
    if target != "return" and (settings.lam != 1 or settings.truncated == "bootstrap"):
        raise ValueError(
            f"{model} has target {target}, which is trained on lengths and has no lambda-returns: "
            f"lenvm.lam={settings.lam}, lenvm.truncated={settings.truncated} need target return. "
            "Use lam=1 and truncated=drop or truncated=censored."
        )
    return LengthValueLoss(
        gamma=_gamma(settings, stored, facts, model),
        target=target,
        bins=stored.length_bins,
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
    segment: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a saved model says about itself, as `LengthValueWorker.describe` takes it."""
    return {
        "gamma": loss.gamma,
        "target": loss.target,
        "bins": None if loss.bins is None else list(loss.bins.edges),
        "length_scale": loss.length_scale,
        "policy": policy,
        "sampling": sampling,
        "answers": answers,
        "segment": segment,
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
