"""Choices of the method, one varied at a time. (LenVM figures 5 and 6, appendix E)

    target      discounted return, raw length, normalised length, log length       figure 5a
    batches     completions shuffled across prompts, or grouped by prompt          figure 5b
    precision   of the matrix products                                             figure 5c
    gamma       three discounts around the one of the 99th percentile of lengths   figure 6
    weighting   tokens alike, or weights that know the response's length           appendix E

The gammas of the paper reach 0.3, 0.6 and 3.0 times the 99th percentile of its lengths (1,533
tokens at gamma .997): so do ours. On weights: dividing by L is the trajectory mean, whatever the
normaliser (AdamW does not see it); the third weighting divides by the remaining length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lenvm_rl.core import gamma_for_length
from lenvm_rl.evals.result import Result
from lenvm_rl.model.training import PRECISIONS, WEIGHTINGS
from recipes.paper_grids.cell import Cell
from recipes.paper_grids.data import Data
from recipes.paper_grids.grid import Results, Variant, report, rows_of

PARTS = ("target", "batches", "precision", "gamma", "weighting")
TARGET_LABELS = {
    "length": "raw length",
    "normalized_length": "normalised length",
    "log_length": "log length",
    "return": "discounted return",
}
REACHES = (0.3, 0.6, 3.0)
"""Lengths that the paper's three gammas are made for, in units of the p99 length."""


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """Which choices, and around which run."""

    parts: tuple[str, ...] = PARTS
    """Of target, batches, precision, gamma, weighting."""
    trunk: str = "2x64"
    """Trunk of all runs: LAYERSxWIDTH (fresh), a causal LM, or its first blocks LM@K."""
    prompts: int = 1600
    """Number of prompts trained on."""
    samples: int = 4
    """Samples of each prompt."""
    gammas: tuple[float, ...] | None = None
    """Discounts (default: those that reach .3, .6 and 3 times the p99 length, as the paper's)."""
    seeds: int = 2
    """Seeds per choice."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}.")
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"parts must be of {', '.join(PARTS)}; got {', '.join(self.parts)!r}.")


def _paper(group: str, label: str, metric: str, final: float, least: float | None = None) -> dict:
    return {"group": group, "label": label, "metric": metric, "final": final, "least": least}


PAPER = [
    _paper("target", TARGET_LABELS["length"], "length_error", 98.3),
    _paper("target", TARGET_LABELS["normalized_length"], "length_error", 273.4),
    _paper("target", TARGET_LABELS["log_length"], "length_error", 93.6, 84.7),
    _paper("target", TARGET_LABELS["return"], "length_error", 76.8, 75.6),
    _paper("batches", "grouped", "loss", 0.00592),
    _paper("batches", "shuffled", "loss", 0.00501),
    _paper("precision", "bfloat16", "loss", 0.00498),
    _paper("precision", "float16", "loss", 0.00501),
    _paper("precision", "float32", "loss", 0.00500),
    *(
        _paper(f"gamma at {position} %", f"{gamma}", "relative_error", error)
        for position, errors in (
            (0, (0.264, 0.224, 0.214)),
            (25, (0.275, 0.244, 0.243)),
            (50, (0.273, 0.272, 0.278)),
            (75, (0.291, 0.315, 0.328)),
        )
        for gamma, error in zip((0.99, 0.995, 0.999), errors, strict=True)
    ),
]
"""Figures 5 and 6 of the paper, read off its vector paths. Its loss is probably half our `mse`."""


def ablation_grid(
    data: Data,
    settings: AblationSettings,
    base: Mapping[str, Any],
    *,
    resolve: Callable[[str], str] = str,
) -> list[Variant]:
    """The runs of all parts; the method itself is one of each part's.

    Args:
        resolve: what a trunk's name stands for.
        base: fields of `Cell` that all runs share, such as steps.
    Raises:
        ValueError: a gamma outside (0, 1), or a size that no run can have.
    """
    middle = Cell(
        **{
            "trunk": resolve(settings.trunk),
            "prompts": settings.prompts,
            "samples": settings.samples,
            "gamma": data.gamma,
            "length_scale": data.longest_response,
            **base,
        }
    )
    gammas = settings.gammas or [gamma_for_length(x * data.p99) for x in REACHES]
    choices = {
        # A raw length is in tokens, whatever the normalised one is divided by.
        "target": [
            (label, {"target": name} | ({"length_scale": 1.0} if name == "length" else {}))
            for name, label in TARGET_LABELS.items()
        ],
        "batches": [("grouped", {"grouped": True}), ("shuffled", {"grouped": False})],
        "precision": [(name, {"precision": name}) for name in PRECISIONS],
        "gamma": [(f"{gamma:.4f}", {"gamma": gamma}) for gamma in gammas],
        "weighting": [(name, {"weighting": name}) for name in WEIGHTINGS],
    }
    return [
        Variant(part, label, replace(middle, **change, seed=middle.seed + seed))
        for part in PARTS
        if part in settings.parts
        for label, change in choices[part]
        for seed in range(settings.seeds)
    ]


def ablation_report(
    variants: Sequence[Variant], results: Results, facts: Mapping[str, Any]
) -> Result:
    """Numbers, the paper's beside them, and whether its choices win here too."""
    return report("ablation", variants, results, facts=facts, paper=PAPER, claims=_claims)


def _claims(finals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Which choice is best by the paper's measure of it."""
    claims: dict[str, Any] = {}
    if rows := rows_of(finals, "target"):
        claims["target_least_length_error"] = _best(rows, "length_error")
    if rows := rows_of(finals, "batches"):
        loss = {row["label"]: row["mse"] for row in rows}
        claims["shuffled_beats_grouped"] = loss["shuffled"] < loss["grouped"]
        claims["grouped_over_shuffled"] = loss["grouped"] / loss["shuffled"]
    if rows := rows_of(finals, "precision"):
        loss = [row["mse"] for row in rows]
        claims["precision_spread"] = (max(loss) - min(loss)) / min(loss)
    if rows := rows_of(finals, "gamma"):
        for position in ("00", "25", "50", "75"):
            claims[f"gamma_best_at_{position}"] = _best(rows, f"relative_error_{position}")
    if rows := rows_of(finals, "weighting"):
        claims["weighting_least_mse"] = _best(rows, "mse")
        claims["weighting_bias_s0"] = {row["label"]: row["u_bias_s0"] for row in rows}
    return claims


def _best(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    return min(rows, key=lambda row: row[metric])["label"]
