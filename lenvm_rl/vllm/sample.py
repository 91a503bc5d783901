"""How do prompts become a rollout file with vLLM, in this process or on many nodes?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.model import tokenizer_sha
from lenvm_rl.model.policy_facts import policy_facts
from lenvm_rl.sampling.fill import FLUSH_SECONDS, SamplingReport, fill
from lenvm_rl.sampling.run import Failure, SamplingRun, Task
from lenvm_rl.vllm.offline import AHEAD, OfflineEngine, start_llm
from lenvm_rl.vllm.room import room_of


def sample_with_vllm(
    policy: str,
    tokenizer: Any,
    tasks: Sequence[Task],
    out: str | Path,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    logprobs: bool = False,
    batch_size: int = AHEAD,
    engine: dict[str, Any] | None = None,
    ray_engines: int | None = None,
    ray_address: str | None = None,
    progress: bool = False,
    flush_seconds: float = FLUSH_SECONDS,
    on_failure: Callable[[Failure], None] | None = None,
) -> SamplingReport:
    """Make the completions of `tasks` that the rollout directory `out` does not hold yet.

    Rows carry no seed: seeded requests cost vLLM speed on a GPU, and its CPU runner dies of them
    where a prompt is read in pieces. So a run may go on with another of the engines, or with a
    server of the same policy name.

    Args:
        policy: directory or hub name.
        tokenizer: of the policy.
        temperature, top_p, top_k, min_p: see `lenvm_rl.sampling.transformers.sampler.Request`.
        logprobs: keep log-probabilities of the distribution that was sampled from.
        batch_size: completions handed to an engine at once.
        engine: settings of vLLM's `LLM`; what is None or missing suits the run, see `room_of`.
        ray_engines: None for one engine in this process; else so many on a Ray cluster.
        ray_address: of the cluster; None finds a running one, or starts one here.
    Raises:
        ValueError: `out` holds completions of another run.
    """
    run = SamplingRun(
        tasks=tasks,
        policy=policy,
        tokenizer_sha=tokenizer_sha(tokenizer),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        own_seeds=False,
        **policy_facts(policy, tokenizer).of_run(),
    )
    given = {name: value for name, value in (engine or {}).items() if value is not None}
    settings = {
        "logprobs_mode": "processed_logprobs",
        **room_of(run, tokenizer, given),
        **given,
    }
    if ray_engines is None:
        start = functools.partial(_start, policy, seed, settings)
        produce = OfflineEngine(run, start, logprobs=logprobs, ahead=batch_size)
    else:
        from lenvm_rl.vllm.ray_engine import RayEngine

        produce = RayEngine(
            run,
            functools.partial(start_llm, policy, **settings),
            engines=ray_engines,
            gpus_per_engine=_gpus(settings),
            logprobs=logprobs,
            batch_size=batch_size,
            address=ray_address,
        )
    return fill(
        run,
        out,
        produce,
        progress=progress,
        flush_seconds=flush_seconds,
        on_failure=on_failure,
    )


def _start(policy: str, seed: int, settings: dict[str, Any], resumed: int) -> Any:
    return start_llm(policy, seed=seed, resumed=resumed, **settings)


def _gpus(settings: dict[str, Any]) -> int:
    """GPUs of one engine; none where there are none here, as on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return 0
    ways = ("tensor_parallel_size", "pipeline_parallel_size")
    return settings.get(ways[0], 1) * settings.get(ways[1], 1)
