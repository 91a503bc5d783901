"""Which requests are refused before they are scheduled, and why? One sentence each (HTTP 400).

This runs in vLLM's front end, which does not know the engine's additional_config. A request that
names gamma is therefore checked against the checkpoint in LENVM_CHECKPOINT (`lenvm serve` sets it).
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from lenvm_rl.scoring import GuidanceSettings
from lenvm_rl.vllm.options import ENVIRONMENT, checkpoint_config

if TYPE_CHECKING:
    from vllm import SamplingParams

_CHECKPOINT = ENVIRONMENT["checkpoint"]


def check_request(params: SamplingParams) -> None:
    """Refuse a request whose guidance is malformed or contradicts its other settings.

    Raises:
        ValueError: what is wrong, and what to send instead.
    """
    settings = GuidanceSettings.from_args(params.extra_args)
    if settings is None:
        return
    _check_gamma(settings)
    if settings.target is None:
        return
    if params.ignore_eos:
        raise ValueError(
            f"ignore_eos contradicts lenvm_mode {settings.mode}, which ends the response with EOS: "
            "leave ignore_eos out."
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
