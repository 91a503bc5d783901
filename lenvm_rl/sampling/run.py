"""Plan of a sampling run: prompts, what all completions share, and what an engine is asked for.

A run is prompts, settings and a policy. It says nothing about the engine: transformers, vLLM, Ray
and servers fill the same file, and any of them goes on where another was killed, as long as every
completion would be sampled alike. That is checked row by row (`lenvm_rl.sampling.fill.completed`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.guidance.settings import RESPONSE
from lenvm_rl.rollouts.record import Rollout, check_row

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
    guidance: GuidanceSettings | None = None
    """What steers the completions; None, or what changes nothing: the policy alone."""
    messages: list[dict[str, str]] | None = None
    images: Sequence[str] = ()
    """Data URIs or URLs; each stands for one `<image>` in the messages. Only servers see them, and
    `prompt_ids` are then those of the text alone."""
    data_source: str = "unknown"
    ground_truth: str | None = None
    refused: tuple[str, str] | None = None
    """Kind and detail of why the prompt has no token ids; its completions are failures."""

    @property
    def steered_by(self) -> GuidanceSettings | None:
        """Guidance that changes something; None: the policy alone."""
        return None if self.guidance is None or self.guidance.changes_nothing else self.guidance


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Completions that an engine could not make. They stay missing; the next run tries again."""

    task: Task
    sample_ids: Sequence[int]
    kind: str
    """Short and without details, so that failures can be counted by it."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion to make, as an engine gets it."""

    task: Task
    sample_id: int
    sampling: Mapping[str, Any]
    """The `sampling` column of its row: temperature, top_p, top_k, min_p, max_tokens, and seed,
    which is None where the engine's own random stream decides."""
    guidance: GuidanceSettings | None = None
    """What steers it; None: the policy alone."""
    policy: str = ""
    """The policy's name in the row."""
    lenvm: Mapping[str, Any] = field(default_factory=dict)
    """What a row says of the LenVM that steered it, see `lenvm_facts`."""

    @property
    def key(self) -> Key:
        """What tells it apart from all others of the run."""
        return self.task.prompt_id, self.sample_id

    def rollout(
        self, token_ids: Sequence[int], finish_reason: str, logprobs: Sequence[float] | None = None
    ) -> Rollout:
        """The finished completion as a row. A response that guidance had to end, because its
        target was used up, is one truncated at the target: its EOS was no choice of the policy's,
        and is not in the row.

        Args:
            token_ids: response tokens, EOS included when `finish_reason` is "stop".
            logprobs: of the tokens, under the distribution that they were drawn from.
        """
        if finish_reason == "stop" and _forced(self.guidance, len(token_ids) - 1):
            token_ids, finish_reason = token_ids[:-1], "length"
            logprobs = logprobs and logprobs[:-1]
        task = self.task
        return Rollout(
            prompt_id=task.prompt_id,
            sample_id=self.sample_id,
            prompt_ids=task.prompt_ids,
            response_ids=token_ids,
            finish_reason=finish_reason,
            prompt_messages=task.messages,
            data_source=task.data_source,
            ground_truth=task.ground_truth,
            sampling=dict(self.sampling),
            policy={"name": self.policy},
            guidance=guidance_column(self.guidance, self.lenvm),
            response_logprobs=logprobs,
        )

    def failure(self, kind: str, detail: str = "") -> Failure:
        """Why it could not be made."""
        return Failure(task=self.task, sample_ids=[self.sample_id], kind=kind, detail=detail)


class Engine(Protocol):
    """What makes completions. There is one protocol for all engines, guided or not."""

    facts: EngineFacts
    """What a run needs to know of it, see `SamplingRun.of`."""

    def __call__(self, requests: Iterator[Request], resumed: int) -> Iterator[Rollout | Failure]:
        """Start, and return results as they come, in any order.

        Args:
            requests: what is missing; read as fast as the engine takes work. Samples of a prompt
                are adjacent, to share its prefill.
            resumed: completions that are there already. An engine with a random stream of its own
                must not give what is left the numbers of what is done.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TokenSampling:
    """Distribution that tokens are drawn from, and the seed of the draws."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this mass, in (0, 1]."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens below this share of the most probable one's probability, in [0, 1]."""
    seed: int = 0
    """Of the whole run; every completion's own is a digest of it, see `completion_seed`."""

    def __post_init__(self) -> None:
        check_drawing(self.temperature, self.top_p, self.top_k, self.min_p)


def check_drawing(temperature: float, top_p: float, top_k: int, min_p: float) -> None:
    """Raise ValueError unless tokens can be drawn so."""
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be a number >= 0, got {temperature}; 0 is greedy.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}; 1 keeps every token.")
    if top_k < -1:
        raise ValueError(f"top_k must be >= 0, got {top_k}; 0 keeps every token.")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be in [0, 1], got {min_p}; 0 keeps every token.")


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What an engine, its policy and its tokenizer put into the rows and the file."""

    policy: str
    """Name of the policy, as it stands in the file."""
    tokenizer_sha: str
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
    lenvm: dict[str, Any] = field(default_factory=dict)
    """What guided rows say of the LenVM, see `lenvm_facts`."""
    retokenized: bool = False
    """Whether the response ids were made from text; see `RolloutWriter`."""


@dataclass(frozen=True, kw_only=True)
class SamplingRun(TokenSampling, EngineFacts):
    """Tasks, and what all their completions have in common."""

    tasks: Sequence[Task]
    stream: str = ""
    """Name of the random stream: runs of one seed that share it draw the same random numbers for
    the same prompts, runs of other names draw unrelated ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise ValueError("no prompts to sample: give at least one.")
        seen: set[str] = set()
        for task in self.tasks:
            if task.prompt_id in seen:
                raise ValueError(
                    f"prompt_id {task.prompt_id!r} occurs twice: completions are told apart by it."
                )
            seen.add(task.prompt_id)
            if task.n < 1 or task.max_tokens < 1:
                raise ValueError(
                    f"n must be at least 1 completion per prompt, got {task.n}, and max_tokens at "
                    f"least 1, got {task.max_tokens}."
                )

    @classmethod
    def of(
        cls,
        engine: Engine,
        tasks: Sequence[Task],
        sampling: TokenSampling | None = None,
        *,
        stream: str = "",
    ) -> Self:
        """The run that makes `tasks` by `engine`."""
        drawn = vars(sampling or TokenSampling())
        return cls(tasks=tasks, stream=stream, **vars(engine.facts), **drawn)

    @property
    def total(self) -> int:
        """Completions of the whole run."""
        return sum(task.n for task in self.tasks)

    def request(self, task: Task, sample_id: int) -> Request:
        """A completion, as an engine is asked for it."""
        name = f"{self.stream}/{task.prompt_id}" if self.stream else task.prompt_id
        return Request(
            task=task,
            sample_id=sample_id,
            sampling={
                "temperature": float(self.temperature),
                "top_p": float(self.top_p),
                "top_k": self.top_k,
                "min_p": float(self.min_p),
                "max_tokens": task.max_tokens,
                "seed": completion_seed(self.seed, name, sample_id) if self.own_seeds else None,
            },
            guidance=task.steered_by,
            policy=self.policy,
            lenvm=self.lenvm,
        )

    def refused(self) -> Iterator[Failure]:
        """Completions that no engine is asked for: their prompts have no token ids."""
        for task in self.tasks:
            if task.refused:
                kind, detail = task.refused
                yield Failure(task=task, sample_ids=range(task.n), kind=kind, detail=detail)

    def missing(self, done: set[Key]) -> Iterator[Request]:
        """What is left; samples of a prompt adjacent."""
        for task in self.tasks:
            for sample_id in range(0 if task.refused else task.n):
                if (task.prompt_id, sample_id) not in done:
                    yield self.request(task, sample_id)

    def check(self, row: Rollout) -> None:
        """Raise MalformedRow for a row that the file does not take."""
        check_row(row, vocab_size=self.vocab_size, eos_ids=self.eos_ids)

    def has_unknown_ids(self, response_ids: Sequence[int]) -> bool:
        """Whether a response holds ids that stand for no token."""
        return self.token_count is not None and max(response_ids) >= self.token_count


def completion_seed(seed: int, prompt_id: str, sample_id: int) -> int:
    """Seed of one completion in [0, 2**63): a digest, so that neighbours are unrelated."""
    digest = hashlib.sha256(f"{seed}/{sample_id}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def guidance_column(
    guidance: GuidanceSettings | None, lenvm: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The `guidance` column of a row: the LenVM and the `lenvm_` arguments; None: unguided."""
    if guidance is None or guidance.changes_nothing:
        return None
    return {**lenvm, **guidance.to_args()}


def lenvm_facts(name: str | Path | None) -> dict[str, Any]:
    """What a row says of the LenVM that steered it: {"lenvm": name}, and of a directory "weights",
    a digest by which a value model that was trained further is another one."""
    files = sorted(Path(name).glob("*.safetensors")) if name else []
    if not files:
        return {"lenvm": name and str(name)}
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return {"lenvm": str(name), "weights": digest.hexdigest()[:16]}


def forced_end(row: Rollout) -> bool:
    """Whether guidance, and not the token limit, ended a row that is marked as truncated: its
    target was used up, so it had to end whatever stood there (see `Request.rollout`)."""
    limit = row.sampling.get("max_tokens")
    if row.finish_reason != "length" or (limit is not None and len(row.response_ids) >= limit):
        return False
    return _forced(GuidanceSettings.from_args(row.guidance), len(row.response_ids))


def _forced(guidance: GuidanceSettings | None, written: int) -> bool:
    """Whether `guidance` forces EOS behind `written` tokens, which it does to whole responses."""
    if guidance is None or guidance.target is None or not guidance.forces_eos:
        return False
    if guidance.segment != RESPONSE:
        return False
    return written >= guidance.target - guidance.count_eos
