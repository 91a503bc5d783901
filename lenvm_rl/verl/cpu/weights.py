"""Way of a training step's weights to the transformers rollout server: through Ray, whole.

verl gives every training worker an adapter of its rollout engine. This one gathers the parameters
(all ranks take part) and lets the first rank of a replica hand them to that replica's server. It
is made for policies of a size that a CPU trains; on GPUs roll out with vLLM.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
from torch import Tensor, nn
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout

from lenvm_rl.verl.plugin import ROLLOUT_NAME


def server_name(replica_rank: int) -> str:
    """Ray name of the server that takes weights; one per replica."""
    return f"lenvm_{ROLLOUT_NAME}_server_{replica_rank}"


def load_policy_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy parameters into the served model.

    Args:
        model: a transformers causal LM.
        weights: its parameters by name; tied ones may be left out.
    Raises:
        ValueError: names that the model has not, or parameters that are missing.
    """
    result = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = [name for name in result.missing_keys if name not in tied]
    if result.unexpected_keys or missing:
        raise ValueError(
            "the trained policy's weights do not fit the served model: "
            f"unknown {result.unexpected_keys[:3]}, missing {missing[:3]}. Serve the same model "
            "that is trained (one actor_rollout_ref.model.path, and no unmerged adapters)."
        )


class TransformersWeights(BaseRollout):
    """verl's rollout adapter inside a training worker, for `rollout.name=transformers`."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, **_: Any):
        super().__init__(config, model_config, device_mesh)
        size = (
            self.config.tensor_model_parallel_size
            * self.config.data_parallel_size
            * self.config.pipeline_model_parallel_size
        )
        self._replica, self._place = divmod(int(os.environ["RANK"]), size)

    async def resume(self, tags: list[str]) -> None:
        """Nothing was released."""

    async def release(self) -> None:
        """Nothing to release: weights stay in the server."""

    @torch.no_grad()
    async def update_weights(
        self,
        weights: Iterable[tuple[str, Tensor]],
        global_steps: int | None = None,
        peft_config: Any = None,
        **_: Any,
    ) -> None:
        """Send the parameters of a step.

        Raises:
            ValueError: unmerged LoRA adapters.
        """
        if peft_config is not None:
            raise ValueError(
                "the transformers rollout engine takes whole weights, not LoRA adapters: set "
                "actor_rollout_ref.model.lora.merge=True, or roll out with vLLM."
            )
        state = {name: tensor.detach().cpu() for name, tensor in weights}  # gathers on all ranks
        if self._place == 0:
            server = ray.get_actor(server_name(self._replica))
            await server.load_weights.remote(state, global_steps)


_ROLLOUT_REGISTRY[(ROLLOUT_NAME, "async")] = f"{__name__}.{TransformersWeights.__qualname__}"
