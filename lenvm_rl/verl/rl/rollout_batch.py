"""Completions that the policy just sampled: verl's batch as the tensors of length terms.

B completions (rows that verl added to make the batch divide are left out), T the longest response.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from lenvm_rl.rollouts import Rollout
from lenvm_rl.verl.batch import cells, finish_reason, prompt_id

_FIELDS = ["prompts", "responses", "response_mask", "rm_scores", "extra_fields", "extra_info"]


@dataclass(frozen=True)
class Samples:
    """The sessions of a batch: what counts as one sample of a prompt, S of them in B completions.

    An agent loop may return several outputs for a session (a conversation that is cut into
    pieces); verl pays all of them what the last one earned.
    """

    of_row: Tensor
    """[B] the session of every completion."""
    last: list[int]
    """[S] the completion that is the session's last output."""
    lengths: Tensor
    """[S] tokens that the policy wrote in all outputs."""
    finished: Tensor
    """[S] bool, True where no output was truncated."""
    correct: Tensor
    """[S] task score."""
    groups: Tensor
    """[S] integers, equal for sessions of one prompt."""


@dataclass(frozen=True)
class RolloutBatch:
    """The completions of one step."""

    partition: str
    """Partition of the queue that they lie in."""
    keys: list[str]
    """Their keys there: prompt, sample and turn, joined by underscores."""
    rows: list[Rollout]
    """Prompt and response tokens, and how the response ended."""
    mask: Tensor
    """[B, T] 1 at tokens that the policy wrote."""
    finished: Tensor
    """[B] bool, True where the policy ended the completion itself."""
    groups: Tensor
    """[B] integers, equal for samples of one prompt."""
    scores: Tensor
    """[B] reward of the reward function."""
    correct: Tensor
    """[B] task score: `acc` of the reward function where it says so, else its reward."""
    reward_info: list[dict[str, Any]]
    """[B] what the reward function returned beside the score, e.g. `acc`."""
    columns: dict[str, list[Any]]
    """Further columns of the data, by name; from the data itself, or from its extra_info."""

    @property
    def widths(self) -> Tensor:
        """[B] tokens of the responses, those of a tool among them."""
        return torch.tensor([row.length for row in self.rows])

    @property
    def lengths(self) -> Tensor:
        """[B] tokens that the policy wrote, EOS included."""
        return self.mask.sum(1)

    @cached_property
    def samples(self) -> Samples:
        """The completions by session."""
        of_row = _numbered([key.rsplit("_", 1)[0] for key in self.keys])
        count = int(of_row.max()) + 1
        last = [0] * count
        turns = [int(key.rsplit("_", 1)[1]) for key in self.keys]
        for row in sorted(range(len(turns)), key=turns.__getitem__):
            last[int(of_row[row])] = row
        truncated = torch.zeros(count, dtype=torch.long).index_add(
            0, of_row, (~self.finished).long()
        )
        return Samples(
            of_row=of_row,
            last=last,
            lengths=self.lengths.new_zeros(count).index_add(0, of_row, self.lengths),
            finished=truncated == 0,
            correct=self.correct[last],
            groups=self.groups[last],
        )

    def check_single_outputs(self, setting: str) -> None:
        """Refuse sessions of several outputs.

        Raises:
            ValueError: there are some; `setting` is what judges one response at a time.
        """
        outputs = torch.bincount(self.samples.of_row)
        if bool((outputs > 1).any()):
            raise ValueError(
                f"{setting} values one response at a time, but the agent loop returned "
                f"{int(outputs.max())} outputs for a session, whose length is theirs together. "
                "Return one output with a response_mask, or set lenvm.use=none (a "
                "lenvm.length_reward counts whole sessions)."
            )

    def check_own_words(self, setting: str) -> None:
        """Refuse responses with tokens that the policy did not write.

        Raises:
            ValueError: there are some; `setting` is what cannot work with them.
        """
        if not bool((self.lengths == torch.tensor([row.length for row in self.rows])).all()):
            raise ValueError(
                f"{setting} trains on responses of one turn, but these hold tokens that the "
                f"policy did not write (a tool's answer). Set {setting.split('=')[0]}=false."
            )

    def put(self, **padded: Tensor) -> None:
        """Write [B, T] tensors to the queue, one entry per response token."""
        widths = [row.length for row in self.rows]
        fields = {
            name: torch.nested.as_nested_tensor(
                [row[:width] for row, width in zip(tensor, widths, strict=True)],
                layout=torch.jagged,
            )
            for name, tensor in padded.items()
        }
        data = TensorDict(fields, batch_size=len(self.keys))
        tq.kv_batch_put(keys=self.keys, partition_id=self.partition, fields=data)

    def get(self, name: str) -> Tensor:
        """A column of the queue with one entry per response token, padded to [B, T]."""
        data = tq.kv_batch_get(keys=self.keys, partition_id=self.partition, select_fields=[name])
        return _padded(cells(data, name), self.mask.shape[1])


def read_rollouts(
    batch: KVBatchMeta, *, eos: set[int], columns: tuple[str, ...] = ()
) -> RolloutBatch:
    """Read a step's completions off verl's queue.

    Args:
        batch: verl's batch.
        eos: tokens that end a completion.
        columns: further columns of the data that are wanted; absent ones are left out.
    Raises:
        ValueError: a completion without any token.
    """
    keys = [
        key
        for key, tag in zip(batch.keys, batch.tags, strict=True)
        if not tag.get("is_padding", False)
    ]
    data = tq.kv_batch_get(
        keys=keys, partition_id=batch.partition_id, select_fields=[*_FIELDS, *columns]
    )
    prompts, responses = cells(data, "prompts"), cells(data, "responses")
    extra = cells(data, "extra_fields") or [None] * len(keys)
    rows = [
        _row(key, prompt.numpy(), response.numpy(), fields, eos)
        for key, prompt, response, fields in zip(keys, prompts, responses, extra, strict=True)
    ]
    mask = _padded(cells(data, "response_mask"), max(row.length for row in rows))
    scores = torch.stack([s.float().sum() for s in cells(data, "rm_scores")])
    info = [(fields or {}).get("reward_extra_info") or {} for fields in extra]
    return RolloutBatch(
        partition=batch.partition_id,
        keys=keys,
        rows=rows,
        mask=mask,
        finished=torch.tensor([not row.truncated for row in rows]),
        groups=_numbered([key.rsplit("_", 2)[0] for key in keys]),
        scores=scores,
        correct=_task_scores(info, scores),
        reward_info=info,
        columns=_columns(data, columns),
    )


def _row(
    key: str,
    prompt: np.ndarray,
    response: np.ndarray,
    extra_fields: dict[str, Any] | None,
    eos: set[int],
) -> Rollout:
    if response.size == 0:
        raise ValueError(
            f"completion {key} has no tokens: even an empty answer has its EOS. Let the rollout "
            "engine return it (vLLM: include_stop_str_in_output=True, no token may be stripped)."
        )
    return Rollout(
        prompt_id=prompt_id(prompt),
        sample_id=int(key.rsplit("_", 2)[1]),
        prompt_ids=prompt,
        response_ids=response,
        finish_reason=finish_reason(response, extra_fields, eos),
    )


def _columns(data: TensorDict, names: tuple[str, ...]) -> dict[str, list[Any]]:
    info = cells(data, "extra_info")
    found: dict[str, list[Any]] = {}
    for name in names:
        column = cells(data, name)
        if column is None and info is not None and any(name in (i or {}) for i in info):
            column = [(i or {}).get(name) for i in info]
        if column is not None:
            found[name] = [e.item() if torch.is_tensor(e) else e for e in column]
    return found


def _task_scores(info: list[dict[str, Any]], scores: Tensor) -> Tensor:
    said = [row.get("acc") for row in info]
    return torch.tensor(
        [float(score if acc is None else acc) for acc, score in zip(said, scores, strict=True)]
    )


def _numbered(names: list[str]) -> Tensor:
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names])


def _padded(rows: list[Tensor], width: int) -> Tensor:
    out = rows[0].new_zeros(len(rows), width)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
