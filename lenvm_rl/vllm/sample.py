"""Engines of vLLM for `lenvm sample`, made for the tasks that they are to complete."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.model import check_tokenizer, find_lenvm, tokenizer_sha
from lenvm_rl.model.policy import policy_facts
from lenvm_rl.sampling.run import EngineFacts, Task, lenvm_facts
from lenvm_rl.vllm.offline import AHEAD, VllmEngine, start_llm
from lenvm_rl.vllm.options import GuidanceOptions, checkpoint_config
from lenvm_rl.vllm.ray_engine import RayEngine
from lenvm_rl.vllm.room import MAX_NUM_SEQS, beside_lenvm, room_of
from lenvm_rl.vllm.serve import PROCESSOR


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """How vLLM runs, in this process or on a Ray cluster."""

    logprobs: bool = False
    """With vLLM: keep log-probabilities (guided runs and transformers always do)."""
    max_model_len: int | None = None
    """With vLLM: most tokens of prompt and response; what the run needs if unset."""
    max_num_seqs: int | None = None
    """With vLLM: requests that run at once; what fits the run and memory if unset."""
    engine_args: str = "{}"
    """With vLLM: further settings of vLLM's LLM, as a JSON object (in Python a dict as well)."""
    lenvm_memory: str | None = None
    """With vLLM: most that the LenVM's keys and values take, e.g. 2GiB; a quarter if unset."""
    lenvm_dtype: str = "auto"
    """With vLLM: what the LenVM computes in: auto (the policy's), float32, bfloat16, float16."""
    engines: int = 1
    """With Ray: engines over all nodes."""
    ray_address: str | None = None
    """With Ray: address of the cluster; a running or local one by default."""

    def __post_init__(self) -> None:
        if self.engines < 1:
            raise ValueError(f"engines must be at least 1, got {self.engines}.")
        self.for_llm()

    def for_llm(self) -> dict[str, Any]:
        """Settings of vLLM's `LLM` that were said."""
        further: Any = self.engine_args
        if isinstance(further, str):
            try:
                further = json.loads(further)
            except ValueError as error:
                raise ValueError(f"--engine-args is not JSON ({error}): {further!r}.") from error
        if not isinstance(further, dict):
            raise ValueError(f"--engine-args must be a JSON object, got {self.engine_args!r}.")
        sizes = {"max_model_len": self.max_model_len, "max_num_seqs": self.max_num_seqs}
        return {name: value for name, value in {**sizes, **further}.items() if value is not None}


def open_engine(
    policy: str,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    lenvm: str | Path | None = None,
    seed: int = 0,
    settings: VllmSettings | None = None,
    batch_size: int | None = None,
    ray: bool = False,
) -> VllmEngine | RayEngine:
    """An engine that is made for `tasks`: no longer and no wider than they need.

    Unguided rows carry no seed: seeded requests cost vLLM speed on a GPU, and its CPU runner dies
    of them where a prompt is read in pieces. So a run may go on with another engine, or with a
    server of the same policy name. Guided rows have seeds of their own on a GPU.

    Args:
        policy: directory or hub name.
        tokenizer: of the policy.
        lenvm: directory of the value model that guides the tasks with guidance.
        seed: of the engine's own random stream.
        batch_size: completions handed to an engine at once; 1024 if None.
        ray: engines on a Ray cluster instead of one here.
    Raises:
        ValueError: a LenVM that is missing or does not fit in memory, or what vLLM refuses.
    """
    if not tasks:
        raise ValueError("no prompts to sample: give at least one.")
    settings = settings or VllmSettings()
    steered = [task.guidance for task in tasks if task.steered_by]
    given = settings.for_llm()
    chosen: dict[str, Any] = {**room_of(policy, tasks, tokenizer, given), **given}
    if steered:
        if lenvm is None:
            raise ValueError(
                "there is nothing to guide by: name the value model's directory (--lenvm)."
            )
        lenvm = find_lenvm(lenvm)
        config = checkpoint_config(str(lenvm))
        check_tokenizer(config, tokenizer)
        for guide in steered:
            guide.check_model(config)
        options = GuidanceOptions(
            checkpoint=str(lenvm),
            max_candidates=max(40, *(guide.top_k for guide in steered)),
            memory=settings.lenvm_memory,
            dtype=settings.lenvm_dtype,
        )
        total = sum(task.n for task in tasks)
        options, chosen = beside_lenvm(policy, options, given, chosen, total=total)
        chosen = {
            "logits_processors": [PROCESSOR],
            "additional_config": options.for_vllm(),
            "max_num_seqs": MAX_NUM_SEQS,
            **chosen,
        }
    facts = EngineFacts(
        policy=policy,
        tokenizer_sha=tokenizer_sha(tokenizer),
        own_seeds=bool(steered) and not ray and torch.cuda.is_available(),
        lenvm=lenvm_facts(lenvm) if lenvm is not None else {},
        **policy_facts(policy, tokenizer).of_run(),
    )
    start = functools.partial(
        start_llm, policy, **{"logprobs_mode": "processed_logprobs", **chosen}
    )
    logprobs = settings.logprobs or bool(steered)
    if not ray:
        start = functools.partial(start, seed=seed)
        return VllmEngine(start, facts, logprobs=logprobs, ahead=batch_size or AHEAD)
    return RayEngine(
        start,
        facts,
        engines=settings.engines,
        gpus_per_engine=_gpus(chosen),
        logprobs=logprobs,
        batch_size=batch_size or AHEAD,
        address=settings.ray_address,
    )


def _gpus(settings: dict[str, Any]) -> int:
    """GPUs of one engine; none where there are none here, as on a CPU."""
    if not torch.cuda.is_available():
        return 0
    ways = ("tensor_parallel_size", "pipeline_parallel_size")
    return settings.get(ways[0], 1) * settings.get(ways[1], 1)
