"""How do prompts become a rollout file with our own sampler on transformers?

Every completion has its own seed, a digest of (run seed, prompt_id, sample_id), and is written
with it. A run that was killed therefore continues with the completions that are missing, and the
finished file holds the same completions as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts.ends import token_count
from lenvm_rl.sampling.encoding import encode_prompt, prompt_row, tasks_of_prompts
from lenvm_rl.sampling.fill import FLUSH_SECONDS, SamplingReport, fill
from lenvm_rl.sampling.run import OVER_CONTEXT, Failure, Sample, SamplingRun, Task
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request

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
    chat_template_args: dict[str, Any] | None = None,
    progress: bool = False,
    flush_seconds: float = FLUSH_SECONDS,
    on_failure: Callable[[Failure], None] | None = None,
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
        temperature, top_p, top_k, min_p: see `lenvm_rl.sampling.transformers.sampler.Request`.
        batch_size: rows generated together; does not change the completions.
        seed: of the whole run.
        chat_template_args: what the chat template gets besides the messages.
        progress: show throughput and remaining time on stderr.
        flush_seconds, on_failure: see `fill`.
    Raises:
        ValueError: `out` holds rows sampled with other settings. A prompt that cannot be sampled is
            a failure, which the report counts.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 completion per prompt, got {n}.")
    tokenizer = load_tokenizer(policy, chat_template_args=chat_template_args)
    return sample_tasks(
        ContinuousSampler.from_pretrained(str(policy), tokenizer=tokenizer, max_batch=batch_size),
        tasks_of_prompts(tokenizer, prompts, n=n, max_tokens=max_tokens),
        out,
        tokenizer_sha=tokenizer_sha(tokenizer),
        policy_name=str(policy),
        tokens=token_count(tokenizer),
        chat_template_args=chat_template_args,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        progress=progress,
        flush_seconds=flush_seconds,
        on_failure=on_failure,
    )


def sample_tasks(
    sampler: ContinuousSampler,
    tasks: Sequence[Task],
    out: str | Path,
    *,
    tokenizer_sha: str,
    policy_name: str,
    tokens: int | None = None,
    chat_template_args: dict[str, Any] | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    progress: bool = False,
    flush_seconds: float = FLUSH_SECONDS,
    on_failure: Callable[[Failure], None] | None = None,
) -> SamplingReport:
    """`sample_to_file` for prompts that are token ids already; see there.

    Args:
        tokens: ids from here on stand for no token; None: not known.
        chat_template_args: with which the ids were made.
    """
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
        token_count=tokens,
        eos_ids=sorted(sampler.eos_token_ids),
        chat_template_args=chat_template_args or {},
    )
    return fill(
        run,
        out,
        _produce(sampler, run),
        progress=progress,
        flush_seconds=flush_seconds,
        on_failure=on_failure,
    )


def _produce(
    sampler: ContinuousSampler, run: SamplingRun
) -> Callable[[Iterator[tuple[Task, int]], int], Iterator[Sample | Failure]]:
    """Completions as they finish; the sampler's queue stays a few batches long."""

    def produce(missing: Iterator[tuple[Task, int]], resumed: int) -> Iterator[Sample | Failure]:
        asked: dict[Hashable, tuple[Task, int]] = {}
        while True:
            while sampler.pending < 2 * sampler.max_batch and (item := next(missing, None)):
                task, sample_id = item
                key = (task.prompt_id, sample_id)
                request = Request(task.prompt_ids, **run.sampling(task, sample_id))
                try:
                    sampler.submit(request, key)
                except ValueError as error:
                    over = len(task.prompt_ids) >= sampler.context_length
                    kind = OVER_CONTEXT if over else "prompt beyond the vocabulary"
                    yield Failure(task=task, sample_ids=[sample_id], kind=kind, detail=str(error))
                    continue
                asked[key] = item
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
