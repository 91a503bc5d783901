"""Completions that the policy just sampled, as far as the trainer knows them: no tokens.

B completions; rows that verl added to make the batch divide are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from lenvm_rl.core import Rows
from lenvm_rl.verl.batch import cells, finish_reason
from lenvm_rl.verl.rl.step_data import QueueData, RowFacts, nested, objects


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

    data: QueueData
    """Where they lie; its keys are prompt, sample and turn, joined by underscores."""
    widths: Tensor
    """[B] tokens of the responses, those of a tool among them."""
    lengths: Tensor
    """[B] tokens that the policy wrote, EOS included."""
    prompt_ids: list[str]
    """[B] names of the prompts."""
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
    def keys(self) -> list[str]:
        """[B] of the completions."""
        return self.data.keys

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
        if not torch.equal(self.lengths, self.widths):
            raise ValueError(
                f"{setting} trains on responses of one turn, but these hold tokens that the "
                f"policy did not write (a tool's answer). Set {setting.split('=')[0]}=false."
            )

    def reward(self, earned: Tensor) -> None:
        """Write token rewards: those of each completion, [B], on its last token."""
        rows = Rows(self.widths)
        scores = torch.zeros(len(rows))
        scores[rows.offsets[1:] - 1] = earned.float()
        self.data.write(rm_scores=nested(scores, rows))


def read_rollouts(
    batch: KVBatchMeta,
    *,
    eos: set[int],
    columns: tuple[str, ...] = (),
    facts_of: Callable[[QueueData], RowFacts] = RowFacts.read,
    plane: type[QueueData] = QueueData,
) -> RolloutBatch:
    """What the trainer knows of a step's completions.

    Args:
        batch: verl's batch.
        eos: tokens that end a completion.
        columns: further columns of the data that are wanted; absent ones are left out.
        facts_of: who looks at the tokens: the length critic's workers, else this process.
        plane: adapter to verl's data plane.
    Raises:
        ValueError: a completion without any token.
    """
    pairs = zip(batch.keys, batch.tags, strict=True)
    keys = [key for key, tag in pairs if not tag.get("is_padding", False)]
    rows = plane(batch.partition_id, keys)
    facts = facts_of(rows)
    if not bool((facts.widths > 0).all()):
        empty = keys[int(facts.widths.argmin())]
        raise ValueError(
            f"completion {empty} has no tokens: even an empty answer has its EOS. Let the rollout "
            "engine return it (vLLM: include_stop_str_in_output=True, no token may be stripped)."
        )
    data = rows.read("extra_fields", "extra_info", *columns)
    extra = objects(data, "extra_fields", len(keys))
    info = [(fields or {}).get("reward_extra_info") or {} for fields in extra]
    reasons = map(finish_reason, facts.last[:, None].tolist(), extra, [eos] * len(keys))
    return RolloutBatch(
        data=rows,
        widths=facts.widths,
        lengths=facts.words,
        prompt_ids=facts.prompt_ids,
        finished=torch.tensor([reason != "length" for reason in reasons]),
        groups=_numbered([key.rsplit("_", 2)[0] for key in keys]),
        scores=facts.scores,
        correct=_task_scores(info, facts.scores),
        reward_info=info,
        columns=_columns(data, columns),
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
