"""Checks and cleaning of what length rewards are given, and the statistics that they share.

Numbers of one prompt's samples arrive as two lists, `correct` (task score in [0, 1]) and `tokens`
(response tokens, EOS included). A count is never read off text: a missing one is an error. A count
that is no number of tokens (NaN, infinite, negative, beyond 1e12) says nothing about length, so
that sample earns 0 and is left out of its group's statistics; training goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 1e12  # tokens; a larger count is garbage
RIGHT = 0.5  # a task score from here on counts as a correct answer where a formula asks yes or no

REMEDY = (
    "length rewards count token ids, never characters: set reward.reward_manager.name=lenvm_length "
    "(lenvm_rl.verl.rl.reward_manager.LengthRewardManager fills extra_info['response_tokens']), or "
    "pass the number of response tokens yourself"
)


def is_correct(score: float) -> bool:
    """Whether a task score counts as a correct answer: at least 0.5."""
    return score >= RIGHT


def clean_score(score: Any) -> float:
    """A task score as a float in [0, 1]; NaN, None and what is no number count as 0 (wrong)."""
    if not isinstance(score, (int, float)) and not hasattr(score, "__float__"):
        return 0.0
    value = float(score)
    return 0.0 if math.isnan(value) else min(max(value, 0.0), 1.0)


def clean_count(tokens: Any) -> float | None:
    """A token count as a float, or None where it is NaN, negative or beyond `LONGEST`.

    Raises:
        ValueError: there is no count at all (None, text).
    """
    if tokens is None or isinstance(tokens, str) or not hasattr(tokens, "__float__"):
        raise ValueError(f"the number of response tokens is {tokens!r}, not a count: {REMEDY}")
    value = float(tokens)
    return value if 0.0 <= value <= LONGEST else None


def response_tokens(extra_info: Mapping[str, Any] | None) -> Any:
    """The token count that the reward manager wrote into `extra_info`.

    Raises:
        ValueError: there is none.
    """
    count = None if extra_info is None else extra_info.get("response_tokens")
    if count is None:
        raise ValueError(f"extra_info has no 'response_tokens': {REMEDY}")
    return count


def check_finite(**values: float) -> None:
    """Raise ValueError unless every named value is a finite number."""
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}, which is no finite number: set it to one")


def check_positive(**values: float) -> None:
    """Raise ValueError unless every named value is a finite number above zero."""
    check_finite(**values)
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value!r}, but must be above 0: set a positive number")


def clean_group(
    correct: Sequence[Any], tokens: Sequence[Any], prompt_ids: Sequence[str] | None = None
) -> tuple[list[int], list[float], list[float]]:
    """The positions with a usable count, and their scores and counts.

    Raises:
        ValueError: a count is missing, or the lists differ in length.
    """
    if tokens is None:
        raise ValueError(f"there are no token counts: {REMEDY}")
    if len(correct) != len(tokens):
        raise ValueError(
            f"{len(correct)} task scores but {len(tokens)} token counts: pass one of each per "
            "sample of the prompt"
        )
    if prompt_ids is not None and len(prompt_ids) != len(tokens):
        raise ValueError(
            f"{len(prompt_ids)} prompt ids but {len(tokens)} token counts: name the prompt of "
            "every sample"
        )
    counts = [clean_count(count) for count in tokens]
    kept = [position for position, count in enumerate(counts) if count is not None]
    scores = [clean_score(correct[position]) for position in kept]
    return kept, scores, [count for count in counts if count is not None]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def population_std(values: Sequence[float]) -> float:
    """Standard deviation with divisor n; exactly 0 where all values are equal."""
    centre = mean(values)
    if min(values) == max(values):
        return 0.0
    return math.sqrt(mean([(value - centre) ** 2 for value in values]))
