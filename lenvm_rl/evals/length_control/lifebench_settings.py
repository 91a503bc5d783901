"""What does LIFEBench ask, and how is it sampled?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lenvm_rl.core import CONTROLS
from lenvm_rl.evals.length_control.lifebench_tasks import UNITS
from lenvm_rl.guidance import GuidanceSettings

METHODS = ("unguided", "guided", "truncated", "countdown")
TARGETS = (32, 64, 128, 256, 512, 1024)
OFFICIAL_TARGETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, kw_only=True)
class LifebenchSettings:
    """What to ask and how to sample."""

    controls: Sequence[str] = CONTROLS
    targets: Sequence[int] = TARGETS
    """Lengths in `unit`; `OFFICIAL_TARGETS` are the benchmark's own, for words."""
    unit: str = "tokens"
    """tokens or words."""
    methods: Sequence[str] = METHODS
    prefix: str = ""
    """Put before every user message. The paper's LenVM was trained on, and evaluated with,
    "Please follow the instructions below." and an empty line."""
    samples: int = 1
    """Completions per prompt, control, target and method."""
    max_tokens: int = 4096
    """Longest response, EOS included: leave room above the largest target."""
    seed: int = 0
    top_k: int = 20
    """Candidates per step, at most ... (the paper: top-k 15, top-p 0.999, no min-p)"""
    min_p: float = GuidanceSettings.min_p
    """... and none below this share of the most probable one's probability."""
    short_weight: float = 5.0
    """equal: what a token too few costs, in tokens too many; see `control.ControlSettings`."""

    def __post_init__(self) -> None:
        for name, given, known in (
            ("controls", self.controls, CONTROLS),
            ("methods", self.methods, METHODS),
            ("unit", [self.unit], UNITS),
        ):
            unknown = [choice for choice in given if choice not in known]
            if unknown or not given:
                raise ValueError(f"{name} must be some of {', '.join(known)}, got {list(given)}.")
        if not self.targets or not all(n >= 1 for n in self.targets):
            raise ValueError(f"targets must be at least 1 {self.unit}, got {list(self.targets)}.")
        if self.unit == "tokens" and self.max_tokens <= max(self.targets):
            raise ValueError(
                f"max_tokens is {self.max_tokens}, but a response shall have {max(self.targets)} "
                "tokens and an end: raise it above the largest target, or drop that target."
            )
        GuidanceSettings(top_k=self.top_k, min_p=self.min_p, short_weight=self.short_weight)
