"""verl's training worker plus what a length value model needs: a description, an export, a term.

Beside a policy the workers read completions off verl's queue themselves and write what they make of
them back: no token passes the trainer. After each use they give the memory of their activations
back to the device, where the rollout engine wakes up next: verl frees the caches of its own workers
before, and does not know of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import NonTensorData, TensorDict
from torch import Tensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.memory_utils import aggressive_empty_cache
from verl.workers.engine_workers import TrainingWorker

from lenvm_rl.model import LengthValueConfig, LengthValueModel, save_checkpoint
from lenvm_rl.rollouts import Rollout
from lenvm_rl.verl.batch import cells, make_batch
from lenvm_rl.verl.engine import LengthValueEngine
from lenvm_rl.verl.rl.length_step import TOKENS, Plan, Report, Share, States, restore, take_step
from lenvm_rl.verl.rl.step_data import QueueData, RowFacts

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

    # --- beside a policy in training: `parts` has an entry for every data-parallel worker ---------

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def row_facts(self, parts: Sequence[QueueData]) -> RowFacts | None:
        """`RowFacts` of this worker's part; None where another rank speaks for it."""
        return RowFacts.read(self._part(parts)) if self._speaks() else None

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def length_step(
        self, parts: Sequence[Share], plan: Plan, critic: dict[str, Any], least: int
    ) -> Report | None:
        """Values, and the length term that is written to the data, of this worker's share.

        Args:
            parts: shares of all workers.
            plan: what is done with the values.
            critic: gamma, target, length_scale and answers of the model.
            least: rows of the largest share; the others fill up to it, for collective calls.
        """
        share = self._part(parts)
        data, rows = _completions(share.data)
        batch = make_batch(rows, loss=self.loss_fn, workers=1, balance=False, least=least)
        self._whole(batch)
        tu.assign_non_tensor(batch, global_token_num=None, compute_loss=False)
        output = self.infer_batch(batch)
        aggressive_empty_cache(force_sync=True)
        if output is None or not self._speaks():
            return None
        outputs = output["values"]
        values = self.loss_fn.read(outputs.values().float())
        outputs = torch.nested.nested_tensor_from_jagged(values, outputs.offsets())
        meet = GroupMeeting(self.engine.get_data_parallel_group(), self.device_name)
        states = States.of(outputs, data)
        return take_step(plan, share, states, SimpleNamespace(**critic), meet=meet)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def restore_scores(self, parts: Sequence[Share]) -> None:
        """Give this worker's completions the task's token rewards back."""
        if self._speaks():
            restore(self._part(parts))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def refresh(self, parts: Sequence[Share], least: int) -> dict[str, Any] | None:
        """One optimiser step of the pretraining loss on the completions of all parts."""
        share = self._part(parts)
        _, rows = _completions(share.data, share.finished.tolist())
        batch = make_batch(rows, loss=self.loss_fn, workers=1, balance=False, least=least)
        self._whole(batch)
        lengths: list[Any] = [None] * self.engine.get_data_parallel_size()
        mine = batch["input_ids"].offsets().diff().tolist()
        group = self.engine.get_data_parallel_group()
        torch.distributed.all_gather_object(lengths, mine, group)
        tokens = NonTensorData([n for part in lengths for n in part])
        tu.assign_non_tensor(batch, global_token_num=tokens, update_lr_scheduler=True)
        output = self.train_batch(batch)
        aggressive_empty_cache(force_sync=True)
        return None if output is None else tu.get(output, "metrics")

    def _part(self, parts: Sequence[Any]) -> Any:
        return parts[self.engine.get_data_parallel_rank()]

    def _speaks(self) -> bool:
        return self.engine.is_mp_src_rank_with_outputs()

    def _whole(self, batch: TensorDict) -> None:
        size = len(batch) * self.engine.get_data_parallel_size()
        tu.assign_non_tensor(batch, global_batch_size=size)

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


class GroupMeeting:
    """`lenvm_rl.core.Meeting` of the data-parallel workers.

    Args:
        group: of torch.distributed.
        device: what its backend reduces on.
    """

    def __init__(self, group: Any, device: str):
        self._group, self._device = group, device

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum."""
        return self._reduced(x, torch.distributed.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """Elementwise maximum."""
        return self._reduced(x, torch.distributed.ReduceOp.MAX)

    def _reduced(self, x: Tensor, how: Any) -> Tensor:
        mine = x.to(self._device, copy=True)
        torch.distributed.all_reduce(mine, op=how, group=self._group)
        return mine.to(x.device)


def _completions(
    data: QueueData, finished: Sequence[bool] | None = None
) -> tuple[TensorDict, list[Rollout]]:
    """The columns `TOKENS` of completions, and the completions as rows of a batch."""
    if not data.keys:
        nothing = torch.nested.nested_tensor_from_jagged(
            torch.zeros(0, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        )
        return TensorDict(dict.fromkeys(TOKENS, nothing), batch_size=0), []
    found = data.read(*TOKENS)
    pairs = zip(cells(found, "prompts") or [], cells(found, "responses") or [], strict=True)
    rows = [
        Rollout(
            prompt_id="",
            sample_id=i,
            prompt_ids=prompt.numpy(),
            response_ids=response.numpy(),
            finish_reason="length" if finished is not None and not finished[i] else "stop",
        )
        for i, (prompt, response) in enumerate(pairs)
    ]
    return found, rows
