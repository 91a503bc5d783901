"""How does vLLM in this process make the completions of a run?

An engine is made for its run: no longer than the run's longest row, so that keys and values take
no more memory than the run can use (`room_of`). What the caller says wins.

Requests are added as others finish, so the engine stays full to the end: there are no batches whose
longest completion everybody waits for. Where requests carry no seeds of their own, the random
numbers are the engine's, and an engine that goes on after others must draw from another stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers import AutoConfig

from lenvm_rl.rollouts.resume import completion_seed
from lenvm_rl.rollouts.sampling_run import OVER_CONTEXT, Failure, Sample, SamplingRun, Task
from lenvm_rl.scoring.memory import available_memory

AHEAD = 1024
"""Completions handed to the engine before earlier ones are done."""
AT_ONCE = 256
"""Requests that an engine runs at once where nothing else is said: vLLM's own least default."""
_CPU_SHARE = 0.25  # of what is free
_CPU_BLOCK = 128  # tokens of a block of vLLM's CPU cache


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


def cpu_defaults(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `LLM` that suit a CPU better than vLLM's own; nothing on other devices.

    vLLM takes all but 8 % of a CPU's memory for keys and values, does not start where other
    processes hold some of it, and fills what it has taken one block after the other. Here they
    get what the requests that run at once can use, and no more than a quarter of what is free.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {}
    chosen: dict[str, Any] = {"enforce_eager": True}  # compiling takes minutes
    if "gpu_memory_utilization" not in settings and "kv_cache_memory_bytes" not in settings:
        room = int(_CPU_SHARE * (available_memory(torch.device("cpu")) or 0))
        chosen["kv_cache_memory_bytes"] = min(_useful_bytes(model, settings) or room, room)
    return chosen


def _useful_bytes(model: str, settings: Mapping[str, Any]) -> int | None:
    """Keys and values of all requests that run at once, at their longest; None: unknown."""
    rows, length = settings.get("max_num_seqs", AT_ONCE), settings.get("max_model_len")
    config = policy_config(model)
    if not rows or not length or config is None:
        return None
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    size = getattr(text, "head_dim", None) or (heads and text.hidden_size // heads)
    if not size:
        return None
    stored = getattr(text, "num_key_value_heads", None) or heads
    per_token = 2 * text.num_hidden_layers * stored * size * dtype_of(config, settings).itemsize
    columns = -(-length // _CPU_BLOCK) * _CPU_BLOCK
    return per_token * columns * (rows + 1)  # vLLM keeps a block to itself


def policy_config(policy: str) -> Any:
    """A policy's configuration; None where transformers alone cannot read it."""
    try:
        return AutoConfig.from_pretrained(policy)
    except (OSError, ValueError):
        return None


def device_share(settings: Mapping[str, Any]) -> int:
    """Bytes of the device that an engine may use: its share of a GPU, what is free of a CPU."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return available_memory(torch.device("cpu")) or 0
    share = settings.get("gpu_memory_utilization", 0.9)
    return int(current_platform.get_device_total_memory() * share)


def dtype_of(config: Any, settings: Mapping[str, Any]) -> torch.dtype:
    """What vLLM will compute in, as far as that is known before: never a narrower type."""
    named = settings.get("dtype", "auto")
    if isinstance(named, torch.dtype):
        return named
    if named in ("half", "bfloat16", "float16"):
        return torch.bfloat16 if named == "bfloat16" else torch.float16
    stored = None if named != "auto" or config is None else config.get_text_config().dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def room_of(run: SamplingRun, tokenizer: Any, settings: Mapping[str, Any]) -> dict[str, int]:
    """`max_model_len` and `max_num_seqs` of an engine that is there for one run: its longest row,
    and all of its completions where they are few. What `settings` say stays; what vLLM's own
    numbers do not exceed is left to it."""
    room = {}
    longest = max(len(task.prompt_ids) + task.max_tokens for task in run.tasks)
    config = policy_config(run.policy)
    limits = [getattr(tokenizer, "model_max_length", None)]
    limits.append(config and getattr(config.get_text_config(), "max_position_embeddings", None))
    if longest < min((limit for limit in limits if limit), default=0):
        room["max_model_len"] = longest
    if run.total < AT_ONCE:
        room["max_num_seqs"] = run.total
    return {name: size for name, size in room.items() if settings.get(name) is None}


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
            asked[name] = task, sample_id
            engine.add_request(name, {"prompt_token_ids": list(task.prompt_ids)}, params)
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
