"""Which guidance was asked for, and which prompts does a rollout file hold?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.sampling.run import Task


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


def tasks_of_rollouts(
    path: str | Path, *, n: int, max_tokens: int, limit: int | None = None
) -> list[Task]:
    """`n` completions of every prompt of a rollout file, of at most `max_tokens` tokens each; at
    most `limit` prompts. Its first completion stands for a prompt."""
    tasks: dict[str, Task] = {}
    for row in RolloutReader(path).iter_rows():
        if limit is not None and len(tasks) >= limit:
            break
        if row.prompt_id not in tasks:
            tasks[row.prompt_id] = Task(
                prompt_id=row.prompt_id,
                prompt_ids=row.prompt_ids,
                n=n,
                max_tokens=max_tokens,
                messages=row.prompt_messages,
                data_source=row.data_source,
                ground_truth=row.ground_truth,
            )
    return list(tasks.values())
