"""Predictions on prompts that the LenVM has not seen, beside noise, baselines and a probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.evals.prediction.errors import PREDICTORS, figure_key
from lenvm_rl.evals.result import Result
from lenvm_rl.model.heldout import NAIVE
from recipes.smollm2.results import Step

MOST_OF_BEST_NAIVE = 0.7
"""Bar: corrected error at the prompt, as a share of the best naive predictor's."""


def run(
    dir: Path = Path("runs/smollm2"),
    *,
    inside: int = 8,
    probe_states: int = 16_384,
    seed: int = 0,
    record: bool = False,
) -> dict[str, Any]:
    """Evaluate DIR/lenvm on DIR/rollouts/heldout; the policy reads about 1.4 M tokens for it.

    Example: `python -m recipes.smollm2 prediction`

    Args:
        dir: Directory of the recipe's files.
        inside: Completions of a prompt that are read to their ends; the measured lengths are of
            all.
        probe_states: States that the probe is fitted on.
        seed: Seed of the probe, the halves and the intervals.
        record: Write the result into the recipe's own folder.
    """
    step = Step("prediction", dir, record, seed)
    out = dir / "prediction"
    figures = step.lenvm(
        *("eval", "prediction", "--lenvm", dir / "lenvm"),
        *("--rollouts", dir / "rollouts" / "heldout", "--train", dir / "rollouts" / "train"),
        *("--probe", dir / "policy", "--probe-states", str(probe_states)),
        *("--inside", str(inside), "--seed", str(seed), "--out", out),
    )
    tables = Result.load(out / "prediction.json").tables
    return step.save(
        {
            "prompts": figures["prompts"],
            "samples_per_prompt": figures["samples_per_prompt"],
            "share_truncated": figures["share_truncated"],
            "noise_floor": figures["mre_noise_floor"],
            "best_naive": figures["best_naive"],
            **{f"share_of_best_naive{end}": figures[f"share_of_best_naive{end}"] for end in _ENDS},
            "at_prompt": at_prompt(figures),
            "by_source": tables["domains"],
            "by_position": tables["positions"],
            "bars": bars(figures, tables["positions"]),
        }
    )


_ENDS = ("", "_low", "_high")


def at_prompt(figures: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Error at the prompt, raw and noise-corrected, with its interval, by predictor.

    Args:
        figures: of `lenvm eval prediction`.
    """
    ends = [f"{corrected}{end}" for corrected in ("", "_corrected") for end in _ENDS]
    return {
        name: {f"mre{end}": figures[f"mre_{figure_key(name)}{end}"] for end in ends}
        for name in PREDICTORS
        if f"mre_{figure_key(name)}" in figures
    }


def bars(figures: Mapping[str, Any], positions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether each bar is met: the share of the best naive error at the prompt, and at every later
    position an error below that of the best naive predictor there.

    Args:
        figures: of `lenvm eval prediction`.
        positions: its table `positions`.
    """
    found: dict[str, Any] = {"s0": figures["share_of_best_naive"] <= MOST_OF_BEST_NAIVE}
    for position in sorted({row["position"] for row in positions} - {0.0}):
        here = {r["predictor"]: r["relative_error"] for r in positions if r["position"] == position}
        best = min(here[name] for name in NAIVE if name in here)
        found[f"{100 * position:.0f} %"] = here["lenvm"] < best
    return found
