"""Which completions does a run of `lenvm generate` make, and which of them are there already?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.rollouts.resume import Completed, check_distinct, completed, completion_seed
from lenvm_rl.scoring import GuidanceSettings
from lenvm_rl.vllm.options import GuidanceOptions


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


@dataclass(frozen=True)
class GenerateRun:
    """What all completions of a run have in common."""

    policy: str
    guidance: GuidanceSettings
    options: GuidanceOptions
    n: int
    max_tokens: int
    temperature: float
    seed: int

    @property
    def metadata(self) -> dict[str, Any] | None:
        """What the file says of its guidance; None where the policy is sampled as it is."""
        if self.guidance.changes_nothing:
            return None
        return {"lenvm": self.options.checkpoint, **self.guidance.to_args()}

    def sampling(self, prompt_id: str, sample_id: int) -> dict[str, Any]:
        """A completion's `sampling` column."""
        own = torch.cuda.is_available()
        return {
            "temperature": float(self.temperature),
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "max_tokens": self.max_tokens,
            "seed": completion_seed(self.seed, prompt_id, sample_id) if own else None,
        }

    def completed(self, out: str | Path, prompts: Sequence[Rollout], sha: str) -> Completed:
        """What an earlier call has written."""
        wanted = {prompt.prompt_id: prompt for prompt in prompts}

        def expected(prompt_id: str, sample_id: int) -> dict[str, Any] | None:
            if prompt_id not in wanted or sample_id >= self.n:
                return None
            return {
                "prompt_ids": list(wanted[prompt_id].prompt_ids),
                "sampling": self.sampling(prompt_id, sample_id),
                "policy": {"name": self.policy, "revision": None},
            }

        return completed(out, expected, tokenizer_sha=sha, guidance=self.metadata)

    def missing(
        self, prompts: Sequence[Rollout], done: set[tuple[str, int]]
    ) -> list[tuple[Rollout, int]]:
        """Prompts and sample numbers that are left to do."""
        return [
            (prompt, sample_id)
            for prompt in prompts
            for sample_id in range(self.n)
            if (prompt.prompt_id, sample_id) not in done
        ]


def check_prompts(prompts: Sequence[Rollout]) -> None:
    """Raise ValueError for no prompts, or one that is there twice."""
    if not prompts:
        raise ValueError("no prompts to complete: give at least one.")
    check_distinct(prompt.prompt_id for prompt in prompts)
