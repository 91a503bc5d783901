"""Strengths of the published length rewards in the benchmark, from weak to strong.

They and the other arguments suit the demo policy: 68 tokens on average, at most 540, about 34 in
its short style; 83 % right. The functions' own defaults are the sources', for thousands of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Strengths:
    """How the benchmark sets one length reward."""

    argument: str
    """Of the reward, that sets how hard it presses for short responses."""
    values: tuple[float, float, float]
    """Of the argument: weak, middle, strong."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """The reward's other arguments."""

    def params(self, strength: float) -> dict[str, Any]:
        """All arguments of the reward at this value of `argument`."""
        return {**self.others, self.argument: strength}


STRENGTHS = {
    "l1_exact": Strengths("alpha", (0.001, 0.003, 0.01), {"target": 40}),
    "l1_max": Strengths("alpha", (0.001, 0.003, 0.01), {"target": 40}),
    "kimi": Strengths("weight", (0.2, 0.5, 1.0)),
    # alpha weighs the answer, so less of it presses harder
    "o1_pruner": Strengths("alpha", (10.0, 5.0, 2.0)),
    "arora_zanette": Strengths("alpha", (0.1, 0.2, 0.4)),
    "dapo_overlong": Strengths("max_tokens", (192.0, 96.0, 64.0), {"buffer": 32.0}),
    "truncation": Strengths("limit", (128.0, 64.0, 40.0)),
    "laser": Strengths("target_tokens", (128.0, 64.0, 40.0)),
    "laser_d": Strengths(
        "bonus", (0.25, 0.5, 1.0), {"shortest": 7.0, "longest": 560.0, "step": 8.0, "every": 5}
    ),
    "shorter_better": Strengths("beta", (0.002, 0.006, 0.02)),
    "alp": Strengths("beta", (0.0005, 0.002, 0.006)),
    "grpo_lead": Strengths("alpha", (0.05, 0.2, 0.5)),
    "hapo": Strengths("weight", (0.25, 0.5, 1.0)),
    "a_dlp": Strengths("reference", (0.75, 0.7, 0.62)),
    "leash": Strengths("target_tokens", (56.0, 40.0, 28.0)),
    "cosine": Strengths("max_tokens", (512.0, 160.0, 80.0)),
}
