"""What is asked of a sampler, what comes back, and who may have a say in between?"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

STOP, LENGTH = "stop", "length"
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Request:
    """One completion to sample; the settings are checked on construction."""

    prompt_ids: Sequence[int]
    """Token ids of the prompt, at least one."""
    max_tokens: int
    """Most tokens of the completion, EOS included; the context length may cut earlier."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this mass, in (0, 1]."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 (or -1, as vLLM writes it) keeps all."""
    min_p: float = 0.0
    """Drop tokens below this share of the most probable one's probability, in [0, 1]."""
    seed: int | None = None
    """Random stream of this completion; None draws one from the sampler's own stream."""

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0:
            raise ValueError("prompt_ids is empty: start from at least one token, such as BOS.")
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
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}.")


@dataclass(frozen=True)
class Completion:
    """What was sampled for one request."""

    token_ids: list[int]
    """Generated tokens; the last one is EOS when `finish_reason` is "stop"."""
    finish_reason: str
    """`"stop"` (EOS was drawn) or `"length"` (cut by max_tokens or the context length)."""
    logprobs: list[float]
    """Log-probability of each token under the distribution it was drawn from (greedy requests:
    under the model's own distribution)."""


@dataclass
class Running:
    """A request while its completion is being sampled."""

    request_id: Hashable
    """As it was submitted."""
    request: Request
    output: list[int] = field(default_factory=list)
    """Tokens generated so far; kept only for samplers with a hook."""


class LogitsHook(Protocol):
    """Changes the logits of every step before tokens are drawn from them."""

    reads_hidden: bool
    """Whether `apply` wants the policy's hidden states."""

    def apply(self, logits: Tensor, running: Sequence[Running], hidden: Tensor | None) -> None:
        """Change logits in place; temperature, top-k, top-p and min-p come afterwards.

        Args:
            logits: [n, V] float32, one row for each running request, in their order.
            running: n requests; the order changes from step to step.
            hidden: [n, H] last hidden states after the final norm, if `reads_hidden`.
        """
        ...

    def close(self, request_id: Hashable) -> None:
        """A running request has ended or was aborted."""
        ...
