"""How does vLLM in this process make the completions of a run?

Requests are added as others finish, so the engine stays full to the end: there are no batches whose
longest completion everybody waits for. Where requests carry no seeds of their own, the random
numbers are the engine's, and an engine that goes on after others must draw from another stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lenvm_rl.sampling.resume import completion_seed
from lenvm_rl.sampling.run import OVER_CONTEXT, Failure, Sample, SamplingRun, Task
from lenvm_rl.vllm.room import cpu_defaults

AHEAD = 1024
"""Completions handed to the engine before earlier ones are done."""


class OfflineEngine:
    """An engine of `fill` that is vLLM's `LLM`.

    Args:
        run: what is sampled.
        start: called with the number of completions that are there already; returns the `LLM`.
        extra_args: of every request, for logits processors.
        logprobs: keep the log-probability of every token.
        ahead: completions handed to the engine at once.
    """

    def __init__(
        self,
        run: SamplingRun,
        start: Callable[[int], Any],
        *,
        extra_args: dict[str, Any] | None = None,
        logprobs: bool = False,
        ahead: int = AHEAD,
    ):
        self._run, self._start = run, start
        self._extra_args, self._logprobs, self._ahead = extra_args, logprobs, ahead

    def __call__(
        self, missing: Iterator[tuple[Task, int]], resumed: int
    ) -> Iterator[Sample | Failure]:
        """Start vLLM, and return completions as they finish."""
        return complete(
            self._start(resumed),
            ((task, k, self._run.sampling(task, k)) for task, k in missing),
            extra_args=self._extra_args,
            logprobs=self._logprobs,
            ahead=self._ahead,
        )


def start_llm(policy: str, *, seed: int, resumed: int = 0, **settings: Any) -> Any:
    """vLLM's `LLM`. After `resumed` completions it draws from a stream of its own, so that what is
    left does not get the random numbers of what is done.

    Args:
        settings: further arguments of `LLM`; they win over the defaults.
    """
    from vllm import LLM

    own = completion_seed(seed, "resumed", resumed) % 2**31 if resumed else seed
    return LLM(policy, **{**cpu_defaults(policy, settings), "seed": own, **settings})


def complete(
    llm: Any,
    work: Iterator[tuple[Task, int, dict[str, Any]]],
    *,
    extra_args: dict[str, Any] | None = None,
    logprobs: bool = False,
    ahead: int = AHEAD,
) -> Iterator[Sample | Failure]:
    """Completions as they finish.

    Args:
        work: (task, sample_id, its `sampling` column).
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    context = engine.vllm_config.model_config.max_model_len
    asked: dict[str, tuple[Task, int]] = {}
    count = 0
    while True:
        while len(asked) < ahead and (item := next(work, None)):
            task, sample_id, sampling = item
            if len(task.prompt_ids) >= context:
                detail = f"{len(task.prompt_ids)} tokens, the engine's context is {context}"
                yield Failure(task=task, sample_ids=[sample_id], kind=OVER_CONTEXT, detail=detail)
                continue
            params = SamplingParams(
                **sampling,
                logprobs=0 if logprobs else None,
                detokenize=False,
                extra_args=extra_args,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            name, count = str(count), count + 1
            try:
                engine.add_request(name, {"prompt_token_ids": list(task.prompt_ids)}, params)
            except ValueError as error:  # of this request: the others are not concerned
                yield Failure(
                    task=task, sample_ids=[sample_id], kind="refused by vLLM", detail=str(error)
                )
                continue
            asked[name] = task, sample_id
        if not asked:
            return
        for answer in engine.step():
            if answer.finished:
                yield _sample(*asked.pop(answer.request_id), answer.outputs[0])


def _sample(task: Task, sample_id: int, completion: Any) -> Sample:
    ids = list(completion.token_ids)
    steps = completion.logprobs
    return Sample(
        task=task,
        sample_id=sample_id,
        token_ids=ids,
        finish_reason=completion.finish_reason,
        logprobs=steps and [step[token].logprob for step, token in zip(steps, ids, strict=True)],
    )
