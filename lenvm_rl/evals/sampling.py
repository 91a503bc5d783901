"""How do prompts become a rollout file with our own sampler on transformers?

Every completion has its own seed, a digest of (run seed, prompt_id, sample_id), and is written
with it. A run that was killed therefore continues with the completions that are missing, and the
finished file holds the same completions as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

from lenvm_rl.evals.encoding import encode_prompt, prompt_row, tasks_of_prompts
from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.model.generate import ContinuousSampler, Request
from lenvm_rl.rollouts.fill import FLUSH_SECONDS, SamplingReport, fill
from lenvm_rl.rollouts.prompts import Prompt
from lenvm_rl.rollouts.sampling_run import Sample, SamplingRun, Task

__all__ = [
    "SamplingReport",
    "Task",
    "encode_prompt",
    "prompt_row",
    "sample_tasks",
    "sample_to_file",
]


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
    flush_seconds: float = FLUSH_SECONDS,
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
        progress: show throughput and remaining time on stderr.
        flush_seconds: how much work a kill may cost; see `fill`.
    Raises:
        ValueError: a prompt that does not fit the context (named), or `out` holds rows sampled
            with other settings.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 completion per prompt, got {n}.")
    tokenizer = load_tokenizer(policy)
    return sample_tasks(
        ContinuousSampler.from_pretrained(str(policy), max_batch=batch_size),
        tasks_of_prompts(tokenizer, prompts, n=n, max_tokens=max_tokens),
        out,
        tokenizer_sha=tokenizer_sha(tokenizer),
        policy_name=str(policy),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        progress=progress,
        flush_seconds=flush_seconds,
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
    flush_seconds: float = FLUSH_SECONDS,
) -> SamplingReport:
    """`sample_to_file` for prompts that are token ids already; see there."""
    run = SamplingRun(
        tasks=tasks,
        policy=policy_name,
        tokenizer_sha=tokenizer_sha,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        vocab_size=sampler.vocab_size,
        eos_ids=sorted(sampler.eos_token_ids),
    )
    _check_fit(sampler, tasks)
    return fill(run, out, _produce(sampler, run), progress=progress, flush_seconds=flush_seconds)


def _check_fit(sampler: ContinuousSampler, tasks: Sequence[Task]) -> None:
    """Every prompt fits, before any work is done."""
    for task in tasks:
        try:
            sampler.check(Request(task.prompt_ids, task.max_tokens))
        except ValueError as error:
            raise ValueError(f"prompt {task.prompt_id!r}: {error}") from error


def _produce(
    sampler: ContinuousSampler, run: SamplingRun
) -> Callable[[Iterator[tuple[Task, int]], int], Iterator[Sample]]:
    """Completions as they finish; the sampler's queue stays a few batches long."""

    def produce(missing: Iterator[tuple[Task, int]], resumed: int) -> Iterator[Sample]:
        asked: dict[Hashable, tuple[Task, int]] = {}
        while True:
            while sampler.pending < 2 * sampler.max_batch and (item := next(missing, None)):
                task, sample_id = item
                key = (task.prompt_id, sample_id)
                asked[key] = item
                sampler.submit(Request(task.prompt_ids, **run.sampling(task, sample_id)), key)
            if not sampler.pending:
                return
            for key, done in sampler.step():
                task, sample_id = asked.pop(key)
                yield Sample(
                    task=task,
                    sample_id=sample_id,
                    token_ids=done.token_ids,
                    finish_reason=done.finish_reason,
                    logprobs=done.logprobs,
                )

    return produce
