"""Which requests are refused before they are scheduled, and why? One sentence each (HTTP 400).

This runs in vLLM's front end, which does not know the engine's additional_config. A request that
names gamma is therefore checked against the checkpoint in LENVM_CHECKPOINT (`lenvm serve` sets it).
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.vllm.options import ENVIRONMENT, REASONING, checkpoint_config

if TYPE_CHECKING:
    from vllm import SamplingParams

_CHECKPOINT = ENVIRONMENT["checkpoint"]


def check_request(params: SamplingParams) -> None:
    """Refuse a request whose guidance is malformed or contradicts its other settings.

    A stop string ends a response where guidance does not see it. vLLM looks for none in the first
    `min_tokens`, so that `at_least` sets these, if the request has stop strings.

    Raises:
        ValueError: what is wrong, and what to send instead.
    """
    settings = GuidanceSettings.from_args(params.extra_args)
    if settings is None:
        return
    _check_gamma(settings)
    if settings.target is None:
        return
    if os.environ.get(REASONING) == "1":
        raise ValueError(
            f"lenvm_mode {settings.mode} counts thinking and answer together, and could end the "
            "response inside its thinking: this server separates reasoning, so send mode tilt or "
            "scale, or bound the thinking with vLLM's thinking_token_budget."
        )
    if params.ignore_eos and not params.stop_token_ids:
        raise ValueError(
            f"ignore_eos contradicts lenvm_mode {settings.mode}: nothing could end the response. "
            "Leave ignore_eos out, or name stop_token_ids."
        )
    if settings.mode != "at_least" and (params.min_tokens or 0) > settings.target:
        raise ValueError(
            f"min_tokens {params.min_tokens} is more than lenvm_target {settings.target} of mode "
            f"{settings.mode}: the response cannot be both. Lower one of them."
        )
    if settings.mode == "at_least" and (params.max_tokens or settings.target) < settings.target:
        raise ValueError(
            f"max_tokens {params.max_tokens} is less than lenvm_target {settings.target} of mode "
            "at_least: the response would be cut before it. Raise max_tokens."
        )
    if params.stop:
        _heed_stop_strings(settings, params)


def _heed_stop_strings(settings: GuidanceSettings, params: SamplingParams) -> None:
    if settings.mode in ("equal", "equal_soft"):
        raise ValueError(
            f"stop strings ({params.stop!r}) end a response where lenvm_mode {settings.mode} does "
            "not see it, before its target: use stop_token_ids, or leave stop out."
        )
    if settings.mode == "at_least":
        needed = settings.target - settings.count_eos
        params.min_tokens = max(params.min_tokens or 0, needed)


def _check_gamma(settings: GuidanceSettings) -> None:
    if settings.gamma is None:
        return
    checkpoint = os.environ.get(_CHECKPOINT)
    if not checkpoint:
        raise ValueError(
            f"lenvm_gamma {settings.gamma} cannot be compared with the LenVM's own: the server "
            f"was started without {_CHECKPOINT}. Leave lenvm_gamma out; the checkpoint knows it."
        )
    settings.check_model(_config(checkpoint))


@lru_cache(maxsize=4)
def _config(checkpoint: str):
    return checkpoint_config(checkpoint)
