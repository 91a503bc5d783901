"""Which guidance was asked for, and which prompts does a rollout file hold?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.scoring import GuidanceSettings


def guidance_of(
    asked: Mapping[str, float | None], *, soft: bool = False, **settings: Any
) -> GuidanceSettings:
    """Settings of the one mode that was asked for; none is `off`.

    Args:
        asked: target of equal, at_most, at_least; beta of tilt; factor of scale; None if not.
        soft: equal in its soft form.
        settings: further fields of `GuidanceSettings`.
    Raises:
        ValueError: more than one mode, `soft` without equal, or a value out of range.
    """
    given = {mode: value for mode, value in asked.items() if value is not None}
    if len(given) > 1 or (soft and "equal" not in given):
        raise ValueError(
            f"got {', '.join(given) or 'no mode'}{' with soft' if soft else ''}: choose one of "
            f"{', '.join(asked)}; soft goes with equal."
        )
    for mode, value in given.items():
        name = {"tilt": "beta", "scale": "scale"}.get(mode, "target")
        return GuidanceSettings(mode="equal_soft" if soft else mode, **{name: value}, **settings)
    return GuidanceSettings()


def prompts_of_rollouts(path: str | Path) -> Iterator[Rollout]:
    """One row per prompt of a rollout file: its first completion stands for it."""
    seen: set[str] = set()
    for row in RolloutReader(path).iter_rows():
        if row.prompt_id not in seen:
            seen.add(row.prompt_id)
            yield row
