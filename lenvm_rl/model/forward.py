"""Outputs of a LenVM along rollouts, in padded batches of similar length.

Convention: the output at the last prompt token belongs to s_0, the one at response token t to
s_{t+1}; the last response token (EOS) is never fed, as nothing remains after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.model import LengthValueConfig, LengthValueModel
from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.record import check_all_generated

_WINDOW = 4096  # rows sorted by length together: little padding at flat memory


@torch.inference_mode()
def iter_logits(
    model: LengthValueModel, rows: Iterable[Rollout], *, token_budget: int = 16_384
) -> Iterator[tuple[Rollout, Tensor]]:
    """Raw logits z of the states s_0 .. s_{L-1} of every rollout, [L] float32 on the CPU.

    Rows come back sorted by length within windows of a few thousand, not in their own order.

    Args:
        model: a LenVM on its device; it is put in evaluation mode.
        rows: a stream of rollouts (read lazily).
        token_budget: padded tokens per forward pass; a longer row gets a pass of its own.
    Raises:
        ValueError: a rollout that the model cannot read, see `check_readable`.
    """
    model.eval()
    stream = iter(rows)
    while window := list(islice(stream, _WINDOW)):
        window.sort(key=_fed)
        for row in window:
            check_readable(model.config, row)
        for batch in _batches(window, token_budget):
            yield from zip(batch, _forward(model, batch), strict=True)


def model_space(model: LengthValueModel) -> dict[str, Any]:
    """Keyword arguments that turn the model's logits into values and lengths (core.targets)."""
    return config_space(model.config)


def config_space(config: LengthValueConfig) -> dict[str, Any]:
    """`model_space` of a checkpoint whose weights are elsewhere."""
    return {
        "target": config.target,
        "gamma": config.require_gamma(),
        "length_scale": config.length_scale,
    }


def _fed(row: Rollout) -> int:
    return len(row.prompt_ids) + row.length - 1


def _batches(rows: list[Rollout], token_budget: int) -> Iterator[list[Rollout]]:
    batch: list[Rollout] = []
    for row in rows:  # ascending: this row is the widest so far
        if batch and (len(batch) + 1) * _fed(row) > token_budget:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _forward(model: LengthValueModel, batch: list[Rollout]) -> list[Tensor]:
    device = next(model.parameters()).device
    ids = torch.zeros(len(batch), max(map(_fed, batch)), dtype=torch.long)
    for i, row in enumerate(batch):
        fed = [*row.prompt_ids, *row.response_ids[:-1]]
        ids[i, : len(fed)] = torch.tensor(fed)
    # Padding is on the right and attention is causal: no state sees it.
    z = model.length_logits(ids.to(device)).float().cpu()
    starts = [len(row.prompt_ids) - 1 for row in batch]
    return [z[i, a : a + row.length] for i, (a, row) in enumerate(zip(starts, batch, strict=True))]


def check_readable(config: LengthValueConfig, row: Rollout) -> None:
    """Refuse a rollout that the LenVM cannot read.

    Raises:
        ValueError: longer than its context, or with ids that its trunk has no embedding for: a
            policy's vocabulary may be padded further than that of the LenVM's trunk; or with
            context in its response, see `check_all_generated`.
    """
    check_all_generated(row)
    name = f"prompt {row.prompt_id!r}, sample {row.sample_id}"
    limit = getattr(config.text_config, "max_position_embeddings", None)
    if limit is not None and _fed(row) > limit:
        raise ValueError(
            f"{name}: {_fed(row)} tokens of prompt and "
            f"response exceed the LenVM's context of {limit}: its values there mean nothing. Use a "
            "LenVM with a longer context, or leave such rows out."
        )
    largest = max(max(row.prompt_ids), max(row.response_ids[:-1], default=0))
    if largest >= config.text_config.vocab_size:
        raise ValueError(
            f"{name}: token id {largest} is beyond the {config.text_config.vocab_size} ids that "
            "the LenVM's trunk reads: the policy's vocabulary is padded further. Leave such rows "
            "out, or use a LenVM with a trunk of the policy's own vocabulary."
        )
