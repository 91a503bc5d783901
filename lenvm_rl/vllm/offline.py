"""Engine that is vLLM's `LLM` in this process, guided by the logits processor where asked.

Requests are added as others finish, so the engine stays full to the end: there are no batches whose
longest completion everybody waits for. Where requests carry no seeds of their own, the random
numbers are the engine's, and an engine that goes on after others must draw from another stream.
Log-probabilities are those of the distribution that was sampled from, the guided one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lenvm_rl.model.hub import check_weights
from lenvm_rl.rollouts.record import Rollout
from lenvm_rl.sampling.run import OVER_CONTEXT, EngineFacts, Failure, Request, completion_seed
from lenvm_rl.vllm.room import cpu_defaults, one_cpu_process

AHEAD = 1024
"""Completions handed to the engine before earlier ones are done."""
CHECKED_FORMATS = ("auto", "safetensors")
"""vLLM's load formats whose files `check_weights` knows."""


class VllmEngine:
    """An `Engine` that is vLLM's `LLM`.

    Args:
        start: called as `start(resumed=count)` with the number of completions that are there
            already; returns the `LLM`.
        facts: of the policy.
        logprobs: keep the log-probability of every token.
        ahead: completions handed to the `LLM` at once.
    """

    def __init__(
        self,
        start: Callable[..., Any],
        facts: EngineFacts,
        *,
        logprobs: bool = False,
        ahead: int = AHEAD,
    ):
        self.facts = facts
        self.start, self._logprobs, self._ahead = start, logprobs, ahead

    def __call__(self, requests: Iterator[Request], resumed: int) -> Iterator[Rollout | Failure]:
        """Start vLLM, and return completions as they finish."""
        llm = self.start(resumed=resumed)
        return complete(llm, requests, logprobs=self._logprobs, ahead=self._ahead)


def start_llm(policy: str, *, seed: int, resumed: int = 0, **settings: Any) -> Any:
    """vLLM's `LLM`. After `resumed` completions it draws from a stream of its own, so that what is
    left does not get the random numbers of what is done.

    Args:
        settings: further arguments of `LLM`; they win over the defaults.
    Raises:
        ValueError: weights that are not all there, or a model that does not fit in memory.
    """
    if settings.get("load_format", "auto") in CHECKED_FORMATS:
        check_weights(policy)
    from vllm import LLM

    one_cpu_process()
    own = completion_seed(seed, "resumed", resumed) % 2**31 if resumed else seed
    return LLM(policy, **{**cpu_defaults(policy, settings), "seed": own, **settings})


def complete(
    llm: Any, requests: Iterator[Request], *, logprobs: bool = False, ahead: int = AHEAD
) -> Iterator[Rollout | Failure]:
    """Completions as they finish."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    context = engine.vllm_config.model_config.max_model_len
    asked: dict[str, Request] = {}
    count = 0
    while True:
        while len(asked) < ahead and (request := next(requests, None)):
            ids = list(request.task.prompt_ids)
            if len(ids) >= context:
                detail = f"{len(ids)} tokens, the engine's context is {context}"
                yield request.failure(OVER_CONTEXT, detail)
                continue
            params = SamplingParams(
                **request.sampling,
                logprobs=0 if logprobs else None,
                detokenize=False,
                extra_args=request.guidance and request.guidance.to_args(),
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            name, count = str(count), count + 1
            try:
                engine.add_request(name, {"prompt_token_ids": ids}, params)
            except ValueError as error:  # of this request: the others are not concerned
                yield request.failure("refused by vLLM", str(error))
                continue
            asked[name] = request
        if not asked:
            return
        for answer in engine.step():
            if answer.finished:
                yield _rollout(asked.pop(answer.request_id), answer.outputs[0])


def _rollout(request: Request, completion: Any) -> Rollout:
    ids = list(completion.token_ids)
    steps = completion.logprobs
    logprobs = steps and [step[token].logprob for step, token in zip(steps, ids, strict=True)]
    return request.rollout(ids, completion.finish_reason, logprobs)
