"""Scaling: larger trunks, more prompts, more samples. (LenVM figure 3)

Three questions share one middle: the trunk varies on all data, the data vary on one trunk. All runs
have the same number of steps, as the paper's seem to, so that small data are seen more often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lenvm_rl.evals.result import Result
from recipes.paper_grids.cell import Cell
from recipes.paper_grids.data import Data
from recipes.paper_grids.grid import Results, Variant, report, rows_of


@dataclass(frozen=True, kw_only=True)
class ScalingSettings:
    """Which sizes; every list from small to large."""

    trunks: tuple[str, ...] = ("1x32", "2x64", "3x96", "4x128")
    """Trunks: LAYERSxWIDTH (fresh), a causal LM, or its first blocks LM@K."""
    trunk: str = "2x64"
    """Trunk on which the data vary."""
    prompts: tuple[int, ...] = (100, 400, 1600)
    """Numbers of prompts."""
    samples: tuple[int, ...] = (1, 2, 4)
    """Numbers of samples per prompt."""
    seeds: int = 2
    """Seeds per size."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}.")
        for name in ("trunks", "prompts", "samples"):
            sizes = getattr(self, name)
            if not sizes or len(set(sizes)) < len(sizes):
                raise ValueError(f"{name} must be different sizes, at least one; got {sizes}.")


def _paper(group: str, label: str, size: float, final: float, least: float | None) -> dict:
    return {
        "group": group,
        "label": label,
        "metric": "loss",
        "size": size,
        "final": final,
        "least": least,
    }


PAPER = [
    _paper("trunk", "0.5B", 0.5e9, 0.00562, None),
    _paper("trunk", "1.5B", 1.5e9, 0.00498, None),
    _paper("trunk", "3B", 3e9, 0.00479, None),
    _paper("trunk", "7B", 7e9, 0.00468, None),
    _paper("trunk", "14B", 14e9, 0.00455, 0.00452),
    _paper("trunk", "32B", 32e9, 0.00444, 0.00439),
    _paper("prompts", "10000", 10_000, 0.00821, 0.00654),
    _paper("prompts", "30000", 30_000, 0.00620, 0.00585),
    _paper("prompts", "100000", 100_000, 0.00553, None),
    _paper("samples", "1", 1, 0.00679, 0.00589),
    _paper("samples", "2", 2, 0.00580, 0.00552),
    _paper("samples", "4", 4, 0.00546, 0.00536),
    _paper("samples", "16", 16, 0.00488, None),
]
"""Figure 3 of the paper, read off its vector paths. Its loss is probably half of our `mse`."""


def scaling_grid(
    data: Data,
    settings: ScalingSettings,
    base: Mapping[str, Any],
    *,
    resolve: Callable[[str], str] = str,
) -> list[Variant]:
    """The runs of all three questions.

    Args:
        resolve: what a trunk's name stands for.
        base: fields of `Cell` that all runs share, such as steps.
    Raises:
        ValueError: for a size that no run can have.
    """
    middle = Cell(
        **{
            "trunk": resolve(settings.trunk),
            "prompts": max(settings.prompts),
            "samples": max(settings.samples),
            "gamma": data.gamma,
            "length_scale": data.longest_response,
            **base,
        }
    )
    rows = [("trunk", str(x), replace(middle, trunk=resolve(x))) for x in settings.trunks]
    rows += [("prompts", str(x), replace(middle, prompts=x)) for x in settings.prompts]
    rows += [("samples", str(x), replace(middle, samples=x)) for x in settings.samples]
    return [
        Variant(group, label, replace(cell, seed=cell.seed + seed))
        for group, label, cell in rows
        for seed in range(settings.seeds)
    ]


def scaling_report(
    variants: Sequence[Variant], results: Results, facts: Mapping[str, Any]
) -> Result:
    """Numbers, the paper's beside them, and whether more is better here too."""
    return report("scaling", variants, results, facts=facts, paper=PAPER, claims=_claims)


def _claims(finals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each question: is the largest better than the smallest, and every step a step down?"""
    claims: dict[str, Any] = {}
    for group in ("trunk", "prompts", "samples"):
        loss = [row["mse"] for row in rows_of(finals, group)]
        if len(loss) > 1:
            claims[f"{group}_largest_beats_smallest"] = loss[-1] < loss[0]
            claims[f"{group}_monotone"] = all(a > b for a, b in zip(loss, loss[1:], strict=False))
            claims[f"{group}_loss_ratio"] = loss[-1] / loss[0]
    for group in ("prompts", "samples"):
        rows = rows_of(finals, group)
        if rows:
            claims[f"{group}_smallest_overfits"] = rows[0]["least_mse"] < 0.99 * rows[0]["mse"]
    return claims
