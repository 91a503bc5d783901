"""Settings of predictor and proxy; importing them needs nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

SYSTEMS = ("vllm", "production-stack", "dynamo", "llm-d")


@dataclass(frozen=True, kw_only=True)
class PredictorSettings:
    """How requests are taken."""

    queue: int = 2048
    """Most prompts that wait; beyond it the answer is 503 with Retry-After."""
    patience: float = 1.0
    """The same where those that wait are more seconds of work than this, as of late."""
    batch_size: int = 64
    """Most prompts of a forward pass."""
    model_name: tuple[str, ...] = ()
    """Further names of the policy that requests may use."""

    def __post_init__(self) -> None:
        if self.queue < 1:
            raise ValueError(f"--queue must be at least 1, got {self.queue}.")
        if not self.patience > 0:
            raise ValueError(f"--patience must be above 0 seconds, got {self.patience}.")


@dataclass(frozen=True, kw_only=True)
class RouteSettings:
    """Which number stands for a length, who is told, and what a prediction may cost."""

    hints: tuple[str, ...] = ("vllm",)
    """Systems whose fields are filled: vllm, production-stack, dynamo, llm-d."""
    quantile: Literal["mean", "p10", "p50", "p90", "p99"] = "mean"
    """What stands for the length; quantiles need a LenVM with a distribution."""
    aging: float = 0.0
    """Tokens by which a request comes forward in each second that it waits; 0: never."""
    unit: float = 16.0
    """Tokens of one step of priority."""
    longest: float = 32_768.0
    """With dynamo: length in tokens of priority 0."""
    override: bool = False
    """Replace hints that a client sent itself (default: they stay)."""
    assumed_length: float | None = None
    """Length in tokens where a prediction failed (default: no hint, which vLLM runs first)."""

    predict_seconds: float = 0.25
    """Longest time that a request waits for its prediction."""
    connect_seconds: float = 5.0
    """Longest time to reach a server."""
    largest_body: int = 64 << 20
    """Bytes of a request; more is 413."""

    def __post_init__(self) -> None:
        if wrong := [name for name in self.hints if name not in SYSTEMS]:
            raise ValueError(f"--hints knows {', '.join(SYSTEMS)}, got {', '.join(wrong)}.")
        for name, least in (("aging", 0.0), ("unit", 1e-3), ("longest", 1.0)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < least:
                raise ValueError(f"--{name} must be a number of at least {least:g}, got {value}.")
