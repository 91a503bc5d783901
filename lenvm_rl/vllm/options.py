"""Which LenVM guides this engine, how much room does it get, and does it fit the policy?

Options come from the engine's `--additional-config '{"lenvm": {"checkpoint": ...}}'`, or from the
environment (LENVM_CHECKPOINT, LENVM_MAX_CANDIDATES, ...), which the front end can read as well.
Everything that cannot work is refused here, before the engine takes its first request.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.model import (
    LengthValueConfig,
    LengthValueModel,
    check_tokenizer,
    is_lenvm_checkpoint,
    load_tokenizer,
)

logger = logging.getLogger("vllm.lenvm_rl")

KEY = "lenvm"
ENVIRONMENT = {
    "checkpoint": "LENVM_CHECKPOINT",
    "slots": "LENVM_SLOTS",
    "max_candidates": "LENVM_MAX_CANDIDATES",
    "chunk_tokens": "LENVM_CHUNK_TOKENS",
}


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """What the engine gives to length guidance."""

    checkpoint: str
    """Directory of the LenVM."""
    slots: int | None = None
    """Requests whose keys and values fit in the pool; None: as many as run at once
    (max_num_seqs). More keep the tokens of preempted requests, fewer are refused."""
    max_candidates: int = 40
    """Most candidates per request and step; a larger lenvm_top_k is cut to it."""
    chunk_tokens: int = 2048
    """Prompt tokens that the LenVM reads in one pass."""

    def __post_init__(self) -> None:
        if not isinstance(self.checkpoint, str) or not is_lenvm_checkpoint(self.checkpoint):
            raise ValueError(
                f"the LenVM checkpoint {str(self.checkpoint)!r} is not a directory with a LenVM in "
                "it (config.json with model_type 'lenvm'): give the path that `lenvm init` or the "
                "training wrote."
            )
        for name in ("slots", "max_candidates", "chunk_tokens"):
            number = getattr(self, name)
            whole = isinstance(number, int) and not isinstance(number, bool)
            if not (number is None and name == "slots") and not (whole and number > 0):
                raise ValueError(
                    f"lenvm option {name} must be a whole number above 0, got {number!r}."
                )

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
        if name != "checkpoint" and not text.isdecimal():
            raise ValueError(f"{variable} must be a whole number above 0, got {text!r}.")
        chosen[name] = text if name == "checkpoint" else int(text)
    return chosen


def checkpoint_config(checkpoint: str | Path) -> LengthValueConfig:
    """Configuration of a LenVM directory, without its weights."""
    return LengthValueConfig.from_pretrained(checkpoint)


def check_engine(vllm_config: Any, options: GuidanceOptions) -> None:
    """Refuse an engine in which guidance would be wrong.

    Raises:
        ValueError: speculative decoding, pipeline parallelism, prompts without token ids, or a
            pool smaller than what runs at once.
    """
    if getattr(vllm_config, "speculative_config", None) is not None:
        raise ValueError(
            "length guidance does not work with speculative decoding: draft tokens would be "
            "accepted by the unguided distribution. Start without --speculative-config."
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
    running = vllm_config.scheduler_config.max_num_seqs
    if options.slots is not None and options.slots < running:
        raise ValueError(
            f"the LenVM's pool has {options.slots} slots, but {running} requests can run at once "
            "(--max-num-seqs): a request without a slot could not be guided. Lower --max-num-seqs, "
            "so that vLLM queues what exceeds it, or leave slots out."
        )


def check_policy(vllm_config: Any, config: LengthValueConfig) -> None:
    """Refuse a LenVM that was trained on another vocabulary than the policy's.

    A policy's output layer may be padded beyond its tokenizer; those rows stand for no token, and
    guided requests never sample them.

    Raises:
        ValueError: another tokenizer, or tokens that the LenVM does not know.
    """
    model = vllm_config.model_config
    size = model.get_vocab_size()
    if not getattr(model, "skip_tokenizer_init", False):
        tokenizer = load_tokenizer(model.tokenizer or model.model)
        check_tokenizer(config, tokenizer)
        size = max(tokenizer.get_vocab().values()) + 1
    if size > config.vocab_size:
        raise ValueError(
            f"the policy has {size} tokens, but the LenVM knows only {config.vocab_size}: it was "
            "trained for another tokenizer. Use a LenVM of this policy."
        )


def eos_token_ids(vllm_config: Any) -> list[int]:
    """All tokens with which the policy ends a response, as vLLM sees them.

    Raises:
        ValueError: none is known.
    """
    model = vllm_config.model_config
    found: set[int] = set()
    for given in (
        getattr(model.hf_text_config, "eos_token_id", None),
        (model.try_get_generation_config() or {}).get("eos_token_id"),
    ):
        found |= {given} if isinstance(given, int) else set(given or ())
    if not found:
        raise ValueError(
            f"the configuration of {model.model} names no eos_token_id, so no response could end: "
            "add it to the policy's generation_config.json."
        )
    return sorted(found)


def load_scorer(vllm_config: Any, options: GuidanceOptions, device: torch.device) -> Any:
    """The LenVM with all memory that it will ever use, on the policy's device.

    Raises:
        ValueError: see `check_engine` and `check_policy`; a LenVM without gamma, or with a shorter
            context than the engine's.
    """
    from lenvm_rl.scoring.q_head import make_scorer

    check_engine(vllm_config, options)
    config = checkpoint_config(options.checkpoint)
    config.require_gamma()
    check_policy(vllm_config, config)
    slots = options.slots or vllm_config.scheduler_config.max_num_seqs
    scorer = make_scorer(
        LengthValueModel.from_pretrained(options.checkpoint),
        slots=slots,
        max_length=vllm_config.model_config.max_model_len,
        max_candidates=options.max_candidates,
        chunk_tokens=options.chunk_tokens,
        policy_states=True,
        device=device,
    )
    logger.info(
        "length guidance by %s: gamma %s, %d slots of %d tokens, %.2f GiB of keys and values",
        options.checkpoint,
        config.gamma,
        slots,
        vllm_config.model_config.max_model_len,
        scorer.cache_bytes / 2**30,
    )
    return scorer
