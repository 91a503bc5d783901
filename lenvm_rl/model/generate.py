"""Sampling completions from any transformers causal LM with continuous batching.

A row that ends leaves the batch at once and a waiting prompt takes its place, so a long tail of
lengths does not idle the batch; equal prompts are prefilled once. Meant for small and medium
models on a CPU or one accelerator; large policies are sampled by vLLM through verl.

    sampler = ContinuousSampler(model, eos_token_id=tokenizer.eos_token_id)
    completions = sampler.generate([Request(prompt_ids, max_tokens=512, seed=7)])

Every request draws from its own random stream, so its completion depends on (weights, prompt,
settings, seed) and not on the batch, its size or the order of the queue.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lenvm_rl.model.slot_cache import SlotCache
from lenvm_rl.model.token_sampling import draw_tokens, sampling_logprobs

STOP, LENGTH = "stop", "length"
_PREFILL_TOKENS = 8192  # padded tokens per prefill pass: bounds memory, keeps the padding small


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How tokens are drawn; checked on construction."""

    max_tokens: int
    """Most tokens of a completion, EOS included; the model's context length cuts earlier."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this mass, in (0, 1]."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 (or -1, as vLLM writes it) keeps all."""
    min_p: float = 0.0
    """Drop tokens below this share of the most probable one's probability, in [0, 1]."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"temperature must be a number >= 0, got {self.temperature}; 0 decodes greedily."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}; 1 keeps every token.")
        if self.top_k < -1:
            raise ValueError(f"top_k must be >= 0, got {self.top_k}; 0 keeps every token.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}; 0 keeps every token.")


@dataclass(frozen=True)
class Request:
    """One completion to sample."""

    prompt_ids: Sequence[int]
    """Token ids of the prompt, at least one."""
    settings: SamplingSettings
    """How tokens are drawn."""
    seed: int | None = None
    """Random stream of this completion; None draws one from the sampler's own generator."""


@dataclass(frozen=True)
class Completion:
    """What was sampled for one request."""

    token_ids: list[int]
    """Generated tokens; the last one is EOS when `finish_reason` is "stop"."""
    finish_reason: str
    """"stop" (EOS was drawn) or "length" (cut by max_tokens or the context length)."""
    logprobs: list[float]
    """Log-probability of each token under the distribution it was drawn from."""
