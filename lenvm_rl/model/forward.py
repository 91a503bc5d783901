"""Completions in padded batches of similar length, and a LenVM's outputs along them.

Convention: the output at the last prompt token belongs to s_0, the one at response token t to
s_{t+1}; the last response token (EOS) is never fed, as nothing remains after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.model import LengthValueConfig, LengthValueModel
from lenvm_rl.model.pictures import sees_pictures
from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.record import check_all_generated

_WINDOW = 4096  # rows sorted by length together: little padding at flat memory


Ids = Sequence[int]


@dataclass(frozen=True)
class Padded:
    """B completions as they are fed: prompt and response without its last token, padded to T.

    Padding is on the right, so with causal attention no state sees it.
    """

    ids: Tensor
    """[B, T] int64 fed tokens; 0 where padded."""
    next_ids: Tensor
    """[B, T] int64 the response token that follows each state; 0 elsewhere."""
    states: Tensor
    """[B, T] bool, set at s_0 .. s_{L-1} of each row."""

    @classmethod
    def of(cls, rows: Sequence[tuple[Ids, Ids]]) -> Padded:
        """Lay out (prompt ids, response ids), at least one token each."""
        ids = torch.zeros(len(rows), max(map(fed, rows)), dtype=torch.long)
        next_ids, states = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
        for i, (prompt, response) in enumerate(rows):
            end = fed((prompt, response))
            ids[i, :end] = torch.tensor([*prompt, *response[:-1]])
            next_ids[i, len(prompt) - 1 : end] = torch.tensor(response)
            states[i, len(prompt) - 1 : end] = True
        return cls(ids, next_ids, states)


def fed(row: tuple[Ids, Ids]) -> int:
    """Tokens that are fed of (prompt ids, response ids)."""
    return len(row[0]) + len(row[1]) - 1


def by_length(widths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices of rows in batches of similar width, narrow ones first.

    Args:
        widths: tokens of each row.
        token_budget: padded tokens per batch; a wider row gets one of its own.
    """
    batch: list[int] = []
    for i in sorted(range(len(widths)), key=widths.__getitem__):  # ascending: the widest so far
        if batch and (len(batch) + 1) * widths[i] > token_budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def iter_logits(
    model: LengthValueModel, rows: Iterable[Rollout], *, token_budget: int = 16_384
) -> Iterator[tuple[Rollout, Tensor]]:
    """Logits z of the states s_0 .. s_{L-1} of every rollout, [L] float32 on the CPU; those of a
    distribution are read at the stored gamma. Arguments and order as for `iter_outputs`."""
    return _iterate(model, model.length_logits, rows, token_budget)


def iter_outputs(
    model: LengthValueModel, rows: Iterable[Rollout], *, token_budget: int = 16_384
) -> Iterator[tuple[Rollout, Tensor]]:
    """Raw head outputs at the states s_0 .. s_{L-1} of every rollout, float32 on the CPU: z [L], or
    the K outputs [L, K] of a distribution.

    Rows come back sorted by length within windows of a few thousand, not in their own order.

    Args:
        model: a LenVM on its device; it is put in evaluation mode.
        rows: a stream of rollouts (read lazily).
        token_budget: padded tokens per forward pass; a longer row gets a pass of its own.
    Raises:
        ValueError: a rollout that the model cannot read, see `check_readable`.
    """
    return _iterate(model, model.length_outputs, rows, token_budget)


@torch.inference_mode()
def _iterate(
    model: LengthValueModel,
    read: Callable[..., Tensor],
    rows: Iterable[Rollout],
    token_budget: int,
) -> Iterator[tuple[Rollout, Tensor]]:
    model.eval()
    stream = iter(rows)
    while window := list(islice(stream, _WINDOW)):
        for row in window:
            check_readable(model.config, row)
        for batch in by_length([fed(_ids(row)) for row in window], token_budget):
            rows_now = [window[i] for i in batch]
            yield from zip(rows_now, _forward(model, read, rows_now), strict=True)


def model_space(model: LengthValueModel) -> dict[str, Any]:
    """Keyword arguments that turn the model's logits into values and lengths (core.targets)."""
    return config_space(model.config)


def config_space(config: LengthValueConfig, *, gamma: float | None = None) -> dict[str, Any]:
    """`model_space` of a checkpoint whose weights are elsewhere, at its gamma or another one."""
    return {
        "target": config.target,
        "gamma": gamma or config.require_gamma(),
        "length_scale": config.length_scale,
    }


def _ids(row: Rollout) -> tuple[Ids, Ids]:
    return row.prompt_ids, row.response_ids


def _forward(
    model: LengthValueModel, read: Callable[..., Tensor], rows: list[Rollout]
) -> list[Tensor]:
    batch = Padded.of([_ids(row) for row in rows])
    device = next(model.parameters()).device
    beside = {name: x.to(device) for name, x in pictures_beside(model, rows).items()}
    out = read(batch.ids.to(device), **beside).float().cpu()
    return [of_row[states] for of_row, states in zip(out, batch.states, strict=True)]


def pictures_beside(model: LengthValueModel, rows: Sequence[Rollout]) -> dict[str, Tensor]:
    """What a trunk that sees pictures reads beside `Padded.of` these rows: pixels and positions.

    Raises:
        ValueError: pictures that are missing or broken, or that are not those of the prompt's
            tokens, see `PictureReader`.
    """
    if not sees_pictures(model.config.text_config):
        for row in rows:
            check_sighted(model.config, row)
        return {}
    reader = model.pictures
    assert reader is not None
    ids = [[*row.prompt_ids, *row.response_ids[:-1]] for row in rows]
    return reader.beside(ids, [reader.see_all(row) for row in rows], width=max(map(len, ids)))


def refuse_pictures(row: Rollout, what: str) -> None:
    """Raise ValueError for a row with pictures where `what` reads the tokens alone."""
    if row.pictures:
        raise ValueError(
            f"prompt {row.prompt_id!r}, sample {row.sample_id} has {len(row.pictures)} pictures, "
            f"and {what} reads tokens alone: leave it out, or take prompts of text."
        )


def check_sighted(config: LengthValueConfig, row: Rollout) -> None:
    """Raise ValueError for a row with pictures and a LenVM that reads text alone, unless it was
    made so on purpose."""
    if row.pictures and not (config.ignores_pictures or sees_pictures(config.text_config)):
        raise ValueError(
            f"prompt {row.prompt_id!r}, sample {row.sample_id} has {len(row.pictures)} pictures, "
            "and this LenVM reads text alone: its values would be those of another question. Use a "
            "LenVM on a trunk that sees them (`lenvm init --policy` of a vision-language policy)."
        )


def check_readable(config: LengthValueConfig, row: Rollout) -> None:
    """Refuse a rollout that the LenVM cannot read.

    Raises:
        ValueError: longer than its context, or with ids that its trunk has no embedding for: a
            policy's vocabulary may be padded further than that of the LenVM's trunk; or with
            context in its response, see `check_all_generated`; or with pictures, where it reads
            text alone.
    """
    check_all_generated(row)
    name = f"prompt {row.prompt_id!r}, sample {row.sample_id}"
    check_sighted(config, row)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and fed(_ids(row)) > limit:
        raise ValueError(
            f"{name}: {fed(_ids(row))} tokens of prompt and "
            f"response exceed the LenVM's context of {limit}: its values there mean nothing. Use a "
            "LenVM with a longer context, or leave such rows out."
        )
    largest = max(max(row.prompt_ids), max(row.response_ids[:-1], default=0))
    if largest >= config.vocab_size:
        raise ValueError(
            f"{name}: token id {largest} is beyond the {config.vocab_size} ids that "
            "the LenVM's trunk reads: the policy's vocabulary is padded further. Leave such rows "
            "out, or use a LenVM with a trunk of the policy's own vocabulary."
        )
