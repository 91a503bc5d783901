"""What is remembered of a token's or a word's scores? Counts, moments, and a few examples."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

CONTEXTS = 4  # examples kept per word and sign
MOST_PROMPTS = 64  # different prompts of a word are counted up to here


@dataclass(kw_only=True, slots=True)
class Tally:
    """Scores of one token or word, so far."""

    text: str
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    positive: int = 0
    negative: int = 0
    least: float = math.inf
    greatest: float = -math.inf
    prompts: set[str] = field(default_factory=set)
    examples: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"positive": [], "negative": []}
    )

    def add(self, score: float, threshold: float, prompt_id: str) -> str | None:
        """Count one occurrence; returns its sign if it is over the threshold."""
        self.count += 1
        if len(self.prompts) < MOST_PROMPTS:
            self.prompts.add(prompt_id)
        self.total += score
        self.squares += score * score
        self.least = min(self.least, score)
        self.greatest = max(self.greatest, score)
        if score > threshold:
            self.positive += 1
            return "positive"
        if score < -threshold:
            self.negative += 1
            return "negative"
        return None

    def place(self, sign: str, rng: random.Random) -> int | None:
        """Where the newest occurrence goes among the examples: a uniform sample of all so far."""
        seen = self.positive if sign == "positive" else self.negative
        place = seen - 1 if seen <= CONTEXTS else rng.randrange(seen)
        return place if place < CONTEXTS else None

    def row(self) -> dict[str, Any]:
        """The tally as a table row."""
        mean = self.total / self.count
        return {
            "text": self.text,
            "count": self.count,
            "prompts": len(self.prompts),
            "positive": self.positive,
            "negative": self.negative,
            "share_positive": self.positive / self.count,
            "share_negative": self.negative / self.count,
            "mean": mean,
            "sd": math.sqrt(max(0.0, self.squares / self.count - mean * mean)),
            "least": self.least,
            "greatest": self.greatest,
        }
