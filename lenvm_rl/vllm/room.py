"""Room that a run, its policy and its LenVM need in an engine, and how much there is.

An engine is made for its run: no longer than the run's longest row, no more requests at once than
there are completions, or than the LenVM's keys and values have memory for. What the caller says
wins, and is refused where it does not fit. All of this is known before vLLM starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.guidance.exact.memory import available_memory, in_units
from lenvm_rl.guidance.heads.q_head import scorer_memory
from lenvm_rl.model.decoder import cache_bytes_per_token
from lenvm_rl.model.policy import policy_configs
from lenvm_rl.sampling.run import Task
from lenvm_rl.vllm.options import GuidanceOptions, checkpoint_config

AT_ONCE = 256
"""Requests that an engine runs at once where nothing else is said: vLLM's own least default."""
MAX_NUM_SEQS = 64
"""The same beside a LenVM."""
ON_A_CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""Environment of an offline engine on a CPU: one process on all cores."""
_CPU_SHARE = 0.25  # of what is free
_CPU_BLOCK = 128  # tokens of a block of vLLM's CPU cache


def room_of(
    policy: str, tasks: Sequence[Task], tokenizer: Any, settings: Mapping[str, Any]
) -> dict[str, int]:
    """`max_model_len` and `max_num_seqs` of an engine that is there for `tasks`: their longest row,
    and all of its completions where they are few. What `settings` say stays; what vLLM's own
    numbers do not exceed is left to it."""
    room = {}
    longest = max(len(task.prompt_ids) + task.max_tokens for task in tasks)
    config = policy_config(policy)
    limits = [getattr(tokenizer, "model_max_length", None), _context(config)]
    if longest < min((limit for limit in limits if limit), default=0):
        room["max_model_len"] = longest
    total = sum(task.n for task in tasks)
    if total < AT_ONCE:
        room["max_num_seqs"] = total
    return {name: size for name, size in room.items() if settings.get(name) is None}


def beside_lenvm(
    policy: str,
    options: GuidanceOptions,
    given: Mapping[str, Any],
    room: Mapping[str, int],
    *,
    total: int = MAX_NUM_SEQS,
) -> tuple[GuidanceOptions, dict[str, Any]]:
    """Options and engine settings with as many requests at once as the LenVM's pages hold at their
    longest, so that they need not take turns, and with just that room.

    Args:
        given: engine settings of the caller, which stay.
        room: what suits the run, see `room_of`.
        total: completions of the run.
    Raises:
        ValueError: not a single request fits; on a CPU, policy and LenVM together take more than
            is free.
    """
    settings = {**room, **given}
    config = policy_config(policy)
    length = settings.get("max_model_len") or _context(config)
    if not length:
        return options, settings  # the engine will know, and refuse what does not fit
    memory = scorer_memory(
        checkpoint_config(options.checkpoint),
        dtype=options.torch_dtype(dtype_of(config, settings)),
        max_candidates=options.max_candidates,
        fixed_shapes=torch.cuda.is_available(),
        policy_states=True,
    )
    budget = options.budget(device_share(settings))
    memory.check(length, budget=budget)
    fitting = max(memory.rows_within(budget, length), 1)
    rows = given.get("max_num_seqs") or min(MAX_NUM_SEQS, total, fitting)
    taken = min(memory.cache(options.slots or rows, length), budget)
    if options.memory is None and taken:
        options = replace(options, memory=f"{taken}B")  # free memory may be less by then
    settings["max_num_seqs"] = rows
    cpu_defaults(policy, settings, beside=memory.weights + taken)
    return options, settings


def one_cpu_process() -> None:
    """An offline engine's environment on a CPU, where nothing else is set: vLLM's own way is a
    process that waits by spinning, with a core to itself, which is half of a machine of two."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        for name, value in ON_A_CPU.items():
            os.environ.setdefault(name, value)


def cpu_defaults(model: str, settings: Mapping[str, Any], *, beside: int = 0) -> dict[str, Any]:
    """Arguments of `LLM` that suit a CPU better than vLLM's own; nothing on other devices.

    vLLM takes all but 8 % of a CPU's memory for keys and values, does not start where other
    processes hold some of it, and fills what it has taken one block after the other. Here they
    get what the requests that run at once can use, and no more than a quarter of what is free.

    Args:
        beside: bytes that something else will take, the LenVM.
    Raises:
        ValueError: the model's weights and its keys and values take more than is free. (Of a hub
            name the weights are not known.)
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {}
    chosen: dict[str, Any] = {"enforce_eager": True}  # compiling takes minutes
    if "gpu_memory_utilization" not in settings and "kv_cache_memory_bytes" not in settings:
        room = cpu_cache_bytes()
        chosen["kv_cache_memory_bytes"] = min(_useful_bytes(model, settings) or room, room)
    cache = settings.get("kv_cache_memory_bytes") or chosen.get("kv_cache_memory_bytes") or 0
    weights, free = _weight_bytes(model, settings), available_memory(torch.device("cpu"))
    if free is not None and weights + cache + beside > free:
        lenvm = f" and the LenVM {in_units(beside)}" if beside else ""
        raise ValueError(
            f"the weights of {model} take {in_units(weights)}, its keys and values "
            f"{in_units(cache)}{lenvm}, but {in_units(free, up=False)} of memory are free: use a "
            "smaller model, free memory, or run fewer and shorter requests at once "
            "(--max-num-seqs, --max-model-len)."
        )
    return chosen


def _weight_bytes(model: str, settings: Mapping[str, Any]) -> int:
    """Weights of a model directory in the dtype that it is served in; 0: unknown."""
    config = policy_config(model)
    stored = getattr(config and config.get_text_config(), "dtype", None)
    size = stored.itemsize if isinstance(stored, torch.dtype) else 2
    files = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    return files * dtype_of(config, settings).itemsize // size


def cpu_cache_bytes() -> int:
    """The policy's keys and values on a CPU: a quarter of what is free."""
    return int(_CPU_SHARE * (available_memory(torch.device("cpu")) or 0))


def _useful_bytes(model: str, settings: Mapping[str, Any]) -> int | None:
    """Keys and values of all requests that run at once, at their longest; None: unknown."""
    rows, length = settings.get("max_num_seqs", AT_ONCE), settings.get("max_model_len")
    config = policy_config(model)
    if not rows or not length or config is None:
        return None
    per_token = cache_bytes_per_token(config, dtype_of(config, settings))
    if per_token is None:
        return None
    columns = -(-length // _CPU_BLOCK) * _CPU_BLOCK
    return per_token * columns * (rows + 1)  # vLLM keeps a block to itself


def policy_config(policy: str) -> Any:
    """A policy's configuration; None where transformers alone cannot read it."""
    return policy_configs(policy).config


def _context(config: Any) -> int | None:
    """A policy's context in tokens; None: unknown."""
    return config and getattr(config.get_text_config(), "max_position_embeddings", None)


def device_share(settings: Mapping[str, Any]) -> int:
    """Bytes of the device that an engine may use: its share of a GPU, what is free of a CPU."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return available_memory(torch.device("cpu")) or 0
    share = settings.get("gpu_memory_utilization", 0.9)
    return int(current_platform.get_device_total_memory() * share)


def dtype_of(config: Any, settings: Mapping[str, Any]) -> torch.dtype:
    """What vLLM will compute in, by its own rule: a checkpoint in float32 is served in two bytes
    unless the engine is told otherwise."""
    named = settings.get("dtype", "auto")
    if named != "auto":
        return named if isinstance(named, torch.dtype) else getattr(torch, named)
    stored = getattr(config and config.get_text_config(), "dtype", None)
    return stored if stored in (torch.float16, torch.bfloat16) else torch.bfloat16
