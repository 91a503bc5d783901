"""Options of an engine: which LenVM guides it, how much room it gets, whether it fits the policy.

Options come from the engine's `--additional-config '{"lenvm": {"checkpoint": ...}}'`, or from the
environment (LENVM_CHECKPOINT, LENVM_MAX_CANDIDATES, ...), which the front end can read as well.
Everything that cannot work is refused here, before the engine takes its first request.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.guidance.exact.memory import available_memory, in_units, parse_bytes
from lenvm_rl.model import (
    LengthValueConfig,
    check_tokenizer,
    find_lenvm,
)
from lenvm_rl.rollouts.ends import end_token_ids

logger = logging.getLogger("vllm.lenvm_rl")

KEY = "lenvm"
ENVIRONMENT = {
    "checkpoint": "LENVM_CHECKPOINT",
    "slots": "LENVM_SLOTS",
    "max_candidates": "LENVM_MAX_CANDIDATES",
    "chunk_tokens": "LENVM_CHUNK_TOKENS",
    "dtype": "LENVM_DTYPE",
    "memory": "LENVM_MEMORY",
}
DTYPES = ("auto", "float32", "bfloat16", "float16")
_WORDS = ("checkpoint", "dtype", "memory")
_SHARE = 0.25  # of what vLLM may use, for the LenVM's keys and values where nothing was said
REASONING = "LENVM_REASONING"
"""Environment variable that says 1 where the engine separates reasoning: only the engine knows it
by itself, and the front end must refuse requests by it."""


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """What the engine gives to length guidance."""

    checkpoint: str
    """Directory of the LenVM."""
    slots: int | None = None
    """Requests whose tokens are remembered; None: as many as run at once (max_num_seqs). More keep
    those of requests that have ended, for others that begin alike; fewer are refused."""
    max_candidates: int = 40
    """Most candidates per request and step; a larger lenvm_top_k is cut to it."""
    chunk_tokens: int = 2048
    """Prompt tokens that the LenVM reads in one pass."""
    dtype: str = "auto"
    """What the trunk computes in: one of `DTYPES`; auto is the policy's. The head stays float32."""
    memory: str | float | None = None
    """What the pages of its keys and values may take, e.g. "2GiB" (a bare number is GiB), at least
    one request's at its longest; None: a quarter of what vLLM may use of the device
    (--gpu-memory-utilization), or of a CPU's free memory."""

    def __post_init__(self) -> None:
        if not isinstance(self.checkpoint, str):
            raise ValueError(
                f"lenvm option checkpoint must be a directory, a hub id or `demo`, got "
                f"{self.checkpoint!r}."
            )
        find_lenvm(self.checkpoint, option="lenvm option checkpoint")
        for name in ("slots", "max_candidates", "chunk_tokens"):
            number = getattr(self, name)
            whole = isinstance(number, int) and not isinstance(number, bool)
            if not (number is None and name == "slots") and not (whole and number > 0):
                raise ValueError(
                    f"lenvm option {name} must be a whole number above 0, got {number!r}."
                )
        if self.dtype not in DTYPES:
            raise ValueError(
                f"lenvm option dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}."
            )
        if self.memory is not None:
            parse_bytes(self.memory)

    @classmethod
    def read(
        cls, additional_config: Any, environment: Mapping[str, str] | None = None
    ) -> GuidanceOptions:
        """From vLLM's `additional_config["lenvm"]`; what it lacks, from the environment.

        Raises:
            ValueError: no checkpoint, an unknown option, or a value that is not valid.
        """
        environment = os.environ if environment is None else environment
        given = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
        if isinstance(given, str):
            given = {"checkpoint": given}
        known = {field.name for field in fields(cls)}
        if not isinstance(given, Mapping) or not set(given) <= known:
            raise ValueError(
                f"additional_config[{KEY!r}] is {given!r}: expected an object with some of "
                f"{', '.join(sorted(known))}."
            )
        chosen = {**_from_environment(environment), **given}
        if "checkpoint" not in chosen:
            raise ValueError(
                "length guidance has no LenVM: name its directory with --additional-config "
                f'\'{{"{KEY}": {{"checkpoint": DIR}}}}\' or LENVM_CHECKPOINT=DIR.'
            )
        return cls(**chosen)

    def torch_dtype(self, policy: torch.dtype) -> torch.dtype:
        """What the trunk computes in beside a policy that computes in `policy`."""
        return policy if self.dtype == "auto" else getattr(torch, self.dtype)

    def budget(self, whole: int) -> int:
        """Bytes that keys and values may take of a device on which vLLM may use `whole`."""
        return int(whole * _SHARE) if self.memory is None else parse_bytes(self.memory)

    def for_vllm(self) -> dict[str, Any]:
        """The value of vLLM's `additional_config` that says this."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return {KEY: {name: value for name, value in chosen.items() if value is not None}}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, variable in ENVIRONMENT.items():
        text = environment.get(variable)
        if not text:
            continue
        if name not in _WORDS and not text.isdecimal():
            raise ValueError(f"{variable} must be a whole number above 0, got {text!r}.")
        chosen[name] = text if name in _WORDS else int(text)
    return chosen


def checkpoint_config(checkpoint: str | Path) -> LengthValueConfig:
    """Configuration of a LenVM (directory, hub id, `demo`), without its weights."""
    return LengthValueConfig.from_pretrained(find_lenvm(checkpoint))


def check_engine(vllm_config: Any, options: GuidanceOptions) -> None:
    """Refuse an engine in which guidance would be wrong; warn of one that may surprise.

    Raises:
        ValueError: speculative decoding, pipeline parallelism, prompts without token ids, a
            reasoning engine whose front end does not know it, or a pool smaller than what runs at
            once.
    """
    if getattr(vllm_config, "speculative_config", None) is not None:
        raise ValueError(
            "length guidance does not work with speculative decoding yet: vLLM would ask it for "
            "the distribution after each draft token (runner V2; V1 runs no processor beside a "
            "draft model), and it values the candidates after the last sampled token alone. Start "
            "without --speculative-config."
        )
    stages = vllm_config.parallel_config.pipeline_parallel_size
    if stages > 1:
        raise ValueError(
            f"length guidance does not work with pipeline parallelism ({stages} stages): every "
            "stage would hold a LenVM and only the last one would use it. Use "
            "--tensor-parallel-size instead."
        )
    if getattr(vllm_config.model_config, "enable_prompt_embeds", False):
        raise ValueError(
            "length guidance needs token ids, and --enable-prompt-embeds lets requests come "
            "without: start without it."
        )
    if reasons(vllm_config) and os.environ.get(REASONING) != "1":
        raise ValueError(
            "this engine separates reasoning (--reasoning-parser or --reasoning-config), where a "
            "target may end a response inside its thinking, before any answer: requests with a "
            "target have to be refused, and the front end cannot know. Start with `lenvm serve`, "
            f"or with {REASONING}=1 in the environment; tilt and scale are served then."
        )
    running = vllm_config.scheduler_config.max_num_seqs
    if options.slots is not None and options.slots < running:
        raise ValueError(
            f"the LenVM has {options.slots} slots, but {running} requests can run at once "
            "(--max-num-seqs): a request without a slot could not be guided. Lower --max-num-seqs, "
            "so that vLLM queues what exceeds it, or leave slots out."
        )
    _warn_of_surprises(vllm_config)


def reasons(vllm_config: Any) -> bool:
    """Whether vLLM tells this engine's thinking from its answers."""
    config = getattr(vllm_config, "reasoning_config", None)
    said = ("reasoning_parser", "reasoning_end_token_ids", "enabled")
    return any(bool(getattr(config, name, None)) for name in said)


def _warn_of_surprises(vllm_config: Any) -> None:
    mode = str(getattr(vllm_config.model_config, "logprobs_mode", ""))
    if mode.startswith("raw"):
        logger.warning(
            "log-probabilities of guided requests are those of the unguided policy (logprobs_mode "
            "%s): start with --logprobs-mode processed_logprobs for those of what was sampled from",
            mode,
        )
    if getattr(vllm_config, "lora_config", None) is not None:
        logger.warning(
            "one LenVM values the candidates of the base model and of all LoRA adapters: an "
            "adapter whose answers are longer or shorter than those that the LenVM was trained on "
            "gets wrong lengths. Serve such an adapter merged, with a LenVM of its own"
        )


def check_policy(vllm_config: Any, config: LengthValueConfig) -> None:
    """Refuse a LenVM that was trained on another vocabulary than the policy's, or that reads the
    policy's states where vLLM takes them apart.

    A policy's output layer may be padded beyond its tokenizer; those rows stand for no token, and
    guided requests never sample them.

    Raises:
        ValueError: another tokenizer, tokens that the LenVM does not know, or states out of reach.
    """
    model = vllm_config.model_config
    size = model.get_vocab_size()
    tokenizer = tokenizer_of(vllm_config)
    if tokenizer is not None:
        check_tokenizer(config, tokenizer)
        size = max(tokenizer.get_vocab().values()) + 1
    if size > config.vocab_size:
        raise ValueError(
            f"the policy has {size} tokens, but the LenVM knows only {config.vocab_size}: it was "
            "trained for another tokenizer. Use a LenVM of this policy."
        )
    sharded = getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", None)
    if sharded and config.head == "candidate" and config.frozen_trunk:
        raise ValueError(
            "this LenVM reads the policy's hidden states, and with --enable-batch-sharded-sampling "
            "a rank samples rows whose states it does not have: start without it, or use a LenVM "
            "with a trunk of its own."
        )


def tokenizer_of(vllm_config: Any) -> Any:
    """The policy's tokenizer as vLLM loads it (revision, mode, code of its own); None without."""
    model = vllm_config.model_config
    if getattr(model, "skip_tokenizer_init", False):
        return None
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(model)


def eos_token_ids(vllm_config: Any) -> list[int]:
    """Tokens that end a response here as long as its request says nothing else, in order.

    Raises:
        ValueError: none is known.
    """
    ends = end_token_ids(
        tokenizer=tokenizer_of(vllm_config),
        generation=vllm_config.model_config.try_get_generation_config(),
    )
    return sorted(ends)


def request_ends(params: Any) -> frozenset[int]:
    """Tokens that end the response of an admitted request: its own stop tokens, and the engine's
    EOS tokens unless it ignores them."""
    return frozenset(params.stop_token_ids if params.ignore_eos else params.all_stop_token_ids)


def load_scorer(vllm_config: Any, options: GuidanceOptions, device: torch.device) -> Any:
    """The LenVM with all memory that it will ever use, on the policy's device.

    Raises:
        ValueError: see `check_engine`, `check_policy` and `check_counted`; a LenVM without gamma,
            with a shorter context than the engine's, or that does not fit in memory.
    """
    from lenvm_rl.guidance.heads.q_head import load_lenvm, make_scorer, scorer_memory
    from lenvm_rl.vllm.internals import VLLM_KERNELS

    check_engine(vllm_config, options)
    check_counted(vllm_config, device)
    config = checkpoint_config(options.checkpoint)
    config.require_gamma()
    check_policy(vllm_config, config)
    slots = options.slots or vllm_config.scheduler_config.max_num_seqs
    max_length = vllm_config.model_config.max_model_len
    dtype = options.torch_dtype(vllm_config.model_config.dtype)
    build = {
        "max_candidates": options.max_candidates,
        "policy_states": True,
        "fixed_shapes": device.type == "cuda",
    }
    # Before any weights are read: what cannot fit is refused in a second.
    plan = scorer_memory(config, dtype=dtype, **build)
    free = available_memory(device)
    budget = options.budget(_whole(vllm_config, device, free))
    if free is not None and plan.weights > free:
        raise ValueError(
            f"the LenVM's weights take {in_units(plan.weights)} in {dtype}, but "
            f"{in_units(free, up=False)} are free on {device}: use a smaller LenVM, or free memory."
        )
    plan.check(max_length, budget=budget, free=free and free - plan.weights)
    scorer = make_scorer(
        load_lenvm(options.checkpoint, dtype),
        slots=slots,
        max_length=max_length,
        chunk_tokens=options.chunk_tokens,
        device=device,
        memory=budget,
        kernels=VLLM_KERNELS,
        **build,
    )
    graphs = _prepare(scorer, vllm_config, options)
    logger.info(
        "length guidance by %s: gamma %s, %s; %s of weights, %s of keys and values for %d "
        "requests of up to %d tokens, %d graphs",
        options.checkpoint,
        config.gamma,
        dtype,
        in_units(plan.weights),
        in_units(scorer.cache_bytes),
        slots,
        max_length,
        graphs,
    )
    return scorer


def _prepare(scorer: Any, vllm_config: Any, options: GuidanceOptions) -> int:
    """Capture the graphs of requests with the usual number of candidates, on CUDA. Not where vLLM
    is told to have none, nor where it sleeps: a graph's memory must stay where it is."""
    model = vllm_config.model_config
    asleep = getattr(model, "enable_sleep_mode", False)
    if not hasattr(scorer, "prepare") or model.enforce_eager or asleep:
        return 0
    return scorer.prepare(min(GuidanceSettings().top_k, options.max_candidates))


def _whole(vllm_config: Any, device: torch.device, free: int | None) -> int:
    """What vLLM may use of the device, in bytes: its share of a GPU, what is free of a CPU."""
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        return int(total * vllm_config.cache_config.gpu_memory_utilization)
    return free or 0


def check_counted(vllm_config: Any, device: torch.device) -> None:
    """Refuse a vLLM that sizes the policy's key/value cache as if the LenVM were not there.

    vLLM 0.24 to 0.26 measure what the policy's weights and its profiling run add, and not what a
    processor has allocated before; from 0.27 on, all that is taken of the device counts.

    Raises:
        ValueError: such a version on a GPU, unless the policy's cache has a size of its own.
    """
    import vllm

    numbers = re.match(r"(\d+)\.(\d+)", vllm.__version__)
    version = tuple(map(int, numbers.groups())) if numbers else (0, 27)
    given = getattr(vllm_config.cache_config, "kv_cache_memory_bytes", None)
    if device.type == "cuda" and version < (0, 27) and given is None:
        raise ValueError(
            f"vLLM {vllm.__version__} does not count the LenVM's memory when it sizes the policy's "
            "key/value cache, and would run out of it: use vLLM 0.27 or newer, or give the cache "
            "its size with --kv-cache-memory-bytes."
        )
