"""How do predictions at the prompt differ by domain? The layout of the paper's table 3.

A domain is a `data_source` of the rollout file. Every number is that of `boundary` on the prompts
of the domain alone; the naive predictors stay those of the whole training file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lenvm_rl.evals.prediction.boundary import PREDICTORS, boundary_metrics
from lenvm_rl.rollouts import Rollout

PAPER_TABLE_3 = {
    "LenVM 1.5B": (17.0, 29.0, 33.0),
    "LenVM 3B": (13.6, 24.0, 27.2),
    "LenVM 7B": (11.0, 19.5, 23.0),
    "LenVM 14B": (10.4, 17.0, 19.8),
    "LenVM 32B": (9.8, 14.9, 17.1),
}
"""MRE in percent on math, code and instruction following (Qwen2.5-7B-Instruct's completions, 64
samples a prompt; raw, not noise-corrected)."""
PAPER_DOMAINS = ("math", "code", "instructions")


def domain_table(
    prompts: Sequence[Mapping[str, Any]], rows: Sequence[Rollout], *, gamma: float, seed: int
) -> list[dict[str, Any]]:
    """One row per domain and predictor.

    Args:
        prompts: of `boundary.boundary_table`.
        rows: the completions, sorted by (prompt_id, sample_id).
        gamma: per-token discount in (0, 1).
        seed: of the halves behind the noise floor.
    """
    table = []
    for domain in sorted({row["data_source"] for row in prompts}):
        part = [row for row in prompts if row["data_source"] == domain]
        names = {row["prompt_id"] for row in part}
        figures = boundary_metrics(
            part, [row for row in rows if row.prompt_id in names], gamma=gamma, seed=seed
        )
        for name in PREDICTORS:
            key = "s0" if name == "lenvm" else f"naive_{name}"
            if f"mre_{key}" in figures:
                table.append(
                    {
                        "domain": domain,
                        "predictor": name,
                        "prompts": figures["prompts"],
                        "samples_per_prompt": figures["samples_per_prompt"],
                        "noise_floor": figures["mre_noise_floor"],
                        "mre": figures[f"mre_{key}"],
                        "mre_corrected": figures[f"mre_{key}_corrected"],
                        "mae": figures[f"mae_{key}"],
                        "kendall_tau": figures[f"kendall_tau_{key}"],
                    }
                )
    return table


def paper_rows() -> list[dict[str, Any]]:
    """Table 3 of the paper in the form of `domain_table`; MRE as a fraction."""
    return [
        {"domain": domain, "predictor": name, "mre": mre / 100}
        for name, values in PAPER_TABLE_3.items()
        for domain, mre in zip(PAPER_DOMAINS, values, strict=True)
    ]
