"""How do prompts become a rollout file, and how does a killed run go on?

Every completion has its own seed, a digest of (run seed, prompt_id, sample_id), and is written
with it. A run that was killed therefore continues with the completions that are missing, and the
finished file holds the same completions as one that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.model.generate import Completion, ContinuousSampler, Request
from lenvm_rl.rollouts import Rollout, RolloutWriter
from lenvm_rl.rollouts.progress import progress_bar
from lenvm_rl.rollouts.prompts import Prompt
from lenvm_rl.rollouts.resume import Completed, check_distinct, completed, completion_seed

# A kill loses the completions of prompts that are not whole yet, and at most so many others ...
_FLUSH_ROWS = 512
_FLUSH_SECONDS = 15.0  # ... or those of so many seconds


@dataclass(frozen=True, kw_only=True)
class SamplingReport:
    """What a sampling run did."""

    rollouts: str
    """The rollout file."""
    prompts: int
    """Prompts asked for."""
    rows: int
    """Completions in the file that belong to this run."""
    rows_resumed: int
    """Of these, completions that an earlier, interrupted run had written."""
    tokens: int
    """Tokens generated now."""
    seconds: float
    """Wall time of generating and writing them."""
    tokens_per_s: float
    """Throughput; 0 when nothing was left to do."""
    mean_length: float
    """Mean response length in tokens over all rows, EOS included."""
    share_cut: float
    """Share of rows cut by the token limit, in [0, 1]."""

    def to_dict(self) -> dict[str, Any]:
        """All figures by name."""
        return asdict(self)


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


def sample_to_file(
    policy: str | Path,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    n: int = 8,
    max_tokens: int = 1024,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> SamplingReport:
    """Sample `n` completions of every prompt into the rollout directory `out`.

    Called again with the same arguments after an interruption, it samples what is missing.

    Args:
        policy: directory or hub name of a causal LM with its tokenizer.
        prompts: chat messages; a policy without a chat template takes single user messages as
            plain text, with the special tokens its tokenizer adds.
        out: directory of shards.
        n: completions per prompt.
        max_tokens: longest response in tokens; the context length may cut earlier.
        temperature, top_p, top_k, min_p: see `lenvm_rl.model.generate.Request`.
        batch_size: rows generated together; does not change the completions.
        seed: of the whole run.
        progress: draw a bar on stderr.
    Raises:
        ValueError: a prompt that does not fit the context (named), or `out` holds rows sampled
            with other settings.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 completion per prompt, got {n}.")
    tokenizer = load_tokenizer(policy)
    sampler = ContinuousSampler.from_pretrained(str(policy), max_batch=batch_size)
    tasks = [
        Task(
            prompt_id=prompt.prompt_id,
            prompt_ids=encode_prompt(tokenizer, prompt),
            n=n,
            max_tokens=max_tokens,
            messages=prompt.messages,
            data_source=prompt.data_source,
            ground_truth=prompt.ground_truth,
        )
        for prompt in prompts
    ]
    return sample_tasks(
        sampler,
        tasks,
        out,
        tokenizer_sha=tokenizer_sha(tokenizer),
        policy_name=str(policy),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        progress=progress,
    )


def sample_tasks(
    sampler: ContinuousSampler,
    tasks: Sequence[Task],
    out: str | Path,
    *,
    tokenizer_sha: str,
    policy_name: str,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> SamplingReport:
    """`sample_to_file` for prompts that are token ids already; see there."""
    settings = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    policy = {"name": policy_name}
    _check_tasks(sampler, tasks)
    found = _existing(out, tasks, settings, policy, tokenizer_sha, seed)
    done, lengths, cut = found.keys, found.tokens, found.cut
    resumed = len(done)
    total = sum(task.n for task in tasks)
    writer = RolloutWriter(
        out,
        tokenizer_sha=tokenizer_sha,
        vocab_size=sampler.vocab_size,
        eos_ids=sorted(sampler.eos_token_ids),
        append=bool(done),
    )
    started = last_flush = time.monotonic()
    tokens, unsaved = 0, 0
    groups = _PromptGroups(tasks, done)
    with writer, progress_bar("sampling", total, shown=progress) as advance:
        advance(resumed)
        try:
            missing = _missing(tasks, done, seed)
            for task, sample_id, request, completion in _run(sampler, missing, settings):
                row = _row(task, sample_id, request, completion, policy)
                tokens += row.length
                lengths += row.length
                cut += row.cut
                whole = groups.add(row)
                writer.append(whole)
                unsaved += len(whole)
                if unsaved >= _FLUSH_ROWS or time.monotonic() - last_flush > _FLUSH_SECONDS:
                    writer.flush()
                    unsaved, last_flush = 0, time.monotonic()
                advance(1)
        finally:
            writer.append(groups.rest())  # of an interrupted run: what is sampled is kept
    seconds = time.monotonic() - started
    return SamplingReport(
        rollouts=str(out),
        prompts=len(tasks),
        rows=total,
        rows_resumed=resumed,
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds if tokens else 0.0,
        mean_length=lengths / total,
        share_cut=cut / total,
    )


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, up to where the response begins.

    Raises:
        ValueError: a conversation for a tokenizer without a chat template.
    """
    if getattr(tokenizer, "chat_template", None):
        return tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    if [message["role"] for message in prompt.messages] != ["user"]:
        raise ValueError(
            f"prompt {prompt.prompt_id!r} is a conversation, but the policy's tokenizer has no "
            "chat template: give it one, or write the prompt as one plain text."
        )
    return tokenizer(prompt.messages[0]["content"])["input_ids"]


def prompt_row(tokenizer: Any, prompt: Prompt) -> Rollout:
    """A prompt as a row, for what takes rows: one token that is never fed is its response."""
    return Rollout(
        prompt_id=prompt.prompt_id,
        sample_id=0,
        prompt_ids=encode_prompt(tokenizer, prompt),
        response_ids=[0],
        finish_reason="length",
        prompt_messages=prompt.messages,
        data_source=prompt.data_source or "unknown",
        ground_truth=prompt.ground_truth,
    )


class _PromptGroups:
    """Holds completions until all of their prompt are there, so that they lie side by side.

    Short completions finish first. In that order neighbours in the file would have similar
    lengths, and neither the spread within prompts nor grouped batches could be read off it.
    """

    def __init__(self, tasks: Sequence[Task], done: set[tuple[str, int]]):
        self._left = {task.prompt_id: task.n for task in tasks}
        for prompt_id, _ in done:
            self._left[prompt_id] -= 1
        self._rows: dict[str, list[Rollout]] = {}

    def add(self, row: Rollout) -> list[Rollout]:
        """The prompt's completions in their order if this was the last one, else nothing."""
        group = self._rows.setdefault(row.prompt_id, [])
        group.append(row)
        self._left[row.prompt_id] -= 1
        if self._left[row.prompt_id]:
            return []
        return sorted(self._rows.pop(row.prompt_id), key=lambda row: row.sample_id)

    def rest(self) -> list[Rollout]:
        """Completions of prompts that are not whole."""
        rows = [row for group in self._rows.values() for row in group]
        self._rows.clear()
        return rows


def _check_tasks(sampler: ContinuousSampler, tasks: Sequence[Task]) -> None:
    """Every prompt fits, before any work is done."""
    if not tasks:
        raise ValueError("no prompts to sample: give at least one.")
    check_distinct(task.prompt_id for task in tasks)
    for task in tasks:
        try:
            sampler.check(Request(task.prompt_ids, task.max_tokens))
        except ValueError as error:
            raise ValueError(f"prompt {task.prompt_id!r}: {error}") from error


def _existing(
    out: str | Path,
    tasks: Sequence[Task],
    settings: dict[str, Any],
    policy: dict[str, Any],
    tokenizer_sha: str,
    seed: int,
) -> Completed:
    """Completions that an earlier, interrupted run has written."""
    wanted = {task.prompt_id: task for task in tasks}

    def expected(prompt_id: str, sample_id: int) -> dict[str, Any] | None:
        task = wanted.get(prompt_id)
        if task is None or sample_id >= task.n:
            return None
        own = completion_seed(seed, prompt_id, sample_id)
        return {
            "prompt_ids": list(task.prompt_ids),
            "sampling": {**settings, "max_tokens": task.max_tokens, "seed": own},
            "policy": {**policy, "revision": None},
        }

    return completed(out, expected, tokenizer_sha=tokenizer_sha)


def _missing(
    tasks: Iterable[Task], done: set[tuple[str, int]], seed: int
) -> Iterator[tuple[Task, int, int]]:
    """(task, sample_id, seed) of what is left; samples of a prompt adjacent, to share prefill."""
    for task in tasks:
        for sample_id in range(task.n):
            if (task.prompt_id, sample_id) not in done:
                yield task, sample_id, completion_seed(seed, task.prompt_id, sample_id)


def _run(
    sampler: ContinuousSampler,
    missing: Iterator[tuple[Task, int, int]],
    settings: dict[str, Any],
) -> Iterator[tuple[Task, int, Request, Completion]]:
    """Completions as they finish; the sampler's queue stays a few batches long."""
    open_requests: dict[tuple[str, int], tuple[Task, int, Request]] = {}
    exhausted = False
    while True:
        while not exhausted and sampler.pending < 2 * sampler.max_batch:
            item = next(missing, None)
            if item is None:
                exhausted = True
                break
            task, sample_id, seed = item
            request = Request(task.prompt_ids, task.max_tokens, seed=seed, **settings)
            key = (task.prompt_id, sample_id)
            open_requests[key] = (task, sample_id, request)
            sampler.submit(request, key)
        if not sampler.pending:
            return
        for key, completion in sampler.step():
            yield *open_requests.pop(key), completion


def _row(
    task: Task, sample_id: int, request: Request, completion: Completion, policy: dict[str, Any]
) -> Rollout:
    return Rollout(
        prompt_id=task.prompt_id,
        sample_id=sample_id,
        prompt_ids=task.prompt_ids,
        response_ids=completion.token_ids,
        finish_reason=completion.finish_reason,
        prompt_messages=task.messages,
        data_source=task.data_source,
        ground_truth=task.ground_truth,
        sampling={
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "min_p": request.min_p,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
        },
        policy=policy,
        response_logprobs=completion.logprobs,
    )
