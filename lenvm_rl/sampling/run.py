"""Which completions does a sampling run make, and which of them are there already?

A run is prompts, settings and a policy. It says nothing about the engine: transformers, vLLM and a
server fill the same file, and any of them goes on where another was killed, as long as every
completion would be sampled alike. That is checked row by row (`resume.completed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts.record import Rollout, check_row
from lenvm_rl.sampling.resume import Completed, check_distinct, completed, completion_seed

Key = tuple[str, int]
"""prompt_id and sample_id of a completion."""
OVER_CONTEXT = "prompt over the context"
"""Kind of failure of a prompt that leaves no room for a response: no engine can complete it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """`n` completions to sample after the same token ids."""

    prompt_id: str
    prompt_ids: Sequence[int]
    n: int
    max_tokens: int
    messages: list[dict[str, str]] | None = None
    data_source: str = "unknown"
    ground_truth: str | None = None
    refused: tuple[str, str] | None = None
    """Kind and detail of why the prompt has no token ids; its completions are failures."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion that an engine has made."""

    task: Task
    sample_id: int
    token_ids: Sequence[int]
    """Response tokens, EOS included when `finish_reason` is "stop"."""
    finish_reason: str
    logprobs: Sequence[float] | None = None

    @property
    def key(self) -> Key:
        """What tells it apart from all others of the run."""
        return self.task.prompt_id, self.sample_id


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Completions that an engine could not make. They stay missing; the next run tries again."""

    task: Task
    sample_ids: Sequence[int]
    kind: str
    """Short and without details, so that failures can be counted by it."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class SamplingRun:
    """What all completions of a run have in common."""

    tasks: Sequence[Task]
    policy: str
    """Name of the policy, as it stands in the file."""
    tokenizer_sha: str
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    own_seeds: bool = True
    """Whether every completion has its own seed, a digest of (seed, prompt_id, sample_id). An
    engine whose random stream is not told apart by completions stores no seed with them."""
    vocab_size: int | None = None
    """Token ids are below it, see `lenvm_rl.rollouts.ends`; None: not known."""
    token_count: int | None = None
    """Ids from here on stand for no token of the tokenizer: such rows are kept and counted."""
    eos_ids: Sequence[int] | None = None
    """Tokens that end a response; None: not known."""
    chat_template_args: dict[str, Any] = field(default_factory=dict)
    """What the chat template got besides the messages; see `RolloutWriter`."""
    guidance: dict[str, Any] | None = field(default=None)
    """What shaped the distribution besides the policy; see `Rollout`."""
    retokenized: bool = False
    """Whether the response ids were made from text; see `RolloutWriter`."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("no prompts to sample: give at least one.")
        check_distinct(task.prompt_id for task in self.tasks)
        least = min(self.tasks, key=lambda task: task.n)
        if least.n < 1:
            raise ValueError(f"n must be at least 1 completion per prompt, got {least.n}.")

    @property
    def total(self) -> int:
        """Completions of the whole run."""
        return sum(task.n for task in self.tasks)

    def sampling(self, task: Task, sample_id: int) -> dict[str, Any]:
        """The `sampling` column of a completion."""
        own = completion_seed(self.seed, task.prompt_id, sample_id) if self.own_seeds else None
        return {
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "top_k": self.top_k,
            "min_p": float(self.min_p),
            "max_tokens": task.max_tokens,
            "seed": own,
        }

    def completed(self, out: str | Path) -> Completed:
        """What an earlier, interrupted run has written into `out`.

        Raises:
            ValueError: `out` holds what this run would not write.
        """
        wanted = {task.prompt_id: task for task in self.tasks}

        def expected(prompt_id: str, sample_id: int) -> dict[str, Any] | None:
            task = wanted.get(prompt_id)
            if task is None or task.refused or sample_id >= task.n:
                return None
            return {
                "prompt_ids": list(task.prompt_ids),
                "sampling": self.sampling(task, sample_id),
                "policy": {"name": self.policy, "revision": None},
                "guidance": self.guidance,
            }

        return completed(
            out,
            expected,
            tokenizer_sha=self.tokenizer_sha,
            retokenized=self.retokenized,
            token_count=self.token_count,
        )

    def refused(self) -> Iterator[Failure]:
        """Completions that no engine is asked for: their prompts have no token ids."""
        for task in self.tasks:
            if task.refused:
                kind, detail = task.refused
                yield Failure(task=task, sample_ids=range(task.n), kind=kind, detail=detail)

    def missing(self, done: set[Key]) -> Iterator[tuple[Task, int]]:
        """(task, sample_id) of what is left; samples of a prompt adjacent, to share prefill."""
        for task in self.tasks:
            for sample_id in range(0 if task.refused else task.n):
                if (task.prompt_id, sample_id) not in done:
                    yield task, sample_id

    def row(self, sample: Sample) -> Rollout:
        """A completion as a row of the file.

        Raises:
            MalformedRow: the file does not take it.
        """
        task = sample.task
        row = Rollout(
            prompt_id=task.prompt_id,
            sample_id=sample.sample_id,
            prompt_ids=task.prompt_ids,
            response_ids=sample.token_ids,
            finish_reason=sample.finish_reason,
            prompt_messages=task.messages,
            data_source=task.data_source,
            ground_truth=task.ground_truth,
            sampling=self.sampling(task, sample.sample_id),
            policy={"name": self.policy},
            response_logprobs=sample.logprobs,
            guidance=self.guidance,
        )
        check_row(row, vocab_size=self.vocab_size, eos_ids=self.eos_ids)
        return row

    def has_unknown_ids(self, response_ids: Sequence[int]) -> bool:
        """Whether a response holds ids that stand for no token."""
        return self.token_count is not None and max(response_ids) >= self.token_count
