"""verl's training worker plus what a length value model needs: a description and an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.memory_utils import aggressive_empty_cache
from verl.workers.engine_workers import TrainingWorker

from lenvm_rl.model import LengthValueConfig, LengthValueModel, save_checkpoint
from lenvm_rl.verl.engine import LengthValueEngine

_DESCRIPTION = (
    "gamma",
    "target",
    "bins",
    "length_scale",
    "policy",
    "sampling",
    "answers",
    "segment",
    "training",
    "measured",
)


class LengthValueWorker(TrainingWorker):
    """One data-parallel rank of the critic; its model type is `engine.MODEL_TYPE`."""

    engine: LengthValueEngine

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def describe(self, **fields: Any) -> None:
        """Store fields of `_DESCRIPTION` in the model's configuration.

        Raises:
            ValueError: another field.
        """
        unknown = sorted(set(fields) - set(_DESCRIPTION))
        if unknown:
            raise ValueError(f"a LenVM has no {unknown}; it is described by {_DESCRIPTION}.")
        config = self.engine.value_config()
        for name, value in fields.items():
            setattr(config, name, value)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def empty_cache(self) -> None:
        """Give the memory of past activations back to the device, where vLLM wakes up next.

        verl frees the caches of its own workers before it wakes the rollout engine, and does not
        know of these.
        """
        aggressive_empty_cache(force_sync=True)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_length_value_model(self, path: str) -> None:
        """Write the directory `LengthValueModel.from_pretrained` reads; a collective call.

        Weights in training precision (float32 masters), adapters merged, tokenizer, and the
        description; the directory appears complete or not at all.
        """
        weights = self.engine.full_weights()
        if self.rank == 0:
            config = LengthValueConfig.from_dict(self.engine.value_config().to_dict())
            config.head_output = "value"
            config.dtype = next(iter(weights.values())).dtype
            with torch.device("meta"):
                model = LengthValueModel(config)
            model.load_state_dict(weights, assign=True)
            save_checkpoint(model, self.model_config.tokenizer, Path(path))
        torch.distributed.barrier()
