"""What does a shorter answer cost? Accuracy against length: the tilt, beside the hard budget.

    guided   p' ~ p exp(beta u) for a sweep of beta (LenVM figure 2)
    budget   the unguided samples cut at B tokens, for a sweep of B: unfinished counts as wrong

Same prompts and candidates on both sides, and beta = 0 is the very sample that the budget cuts.
Lengths are response tokens without EOS; the budget's mean length is that of the cut samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lenvm_rl.evals.control import MIN_P, Generate, sample_each
from lenvm_rl.evals.outcomes import Grader, Outcome, mean_of, measure
from lenvm_rl.evals.results import finite, save_results
from lenvm_rl.evals.sampling import encode_prompt
from lenvm_rl.rollouts.prompts import Prompt
from lenvm_rl.scoring import GuidanceSettings

BETAS = (-200.0, -100.0, -50.0, -25.0, -12.0, -6.0, -3.0, 0.0, 3.0, 6.0)


@dataclass(frozen=True, eq=False)
class TradeoffReport:
    """Figures and tables of one evaluation."""

    figures: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]]
    """guided (per beta) and budget (per B)."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def save(self, out: str | Path) -> list[Path]:
        """Write tradeoff.json, .jsonl, one CSV per table, and tradeoff.png into `out`."""
        from lenvm_rl.evals.tradeoff_plots import plot_tradeoff

        paths = save_results(out, "tradeoff", self.figures, self.tables)
        return [*paths, plot_tradeoff(self.tables, self.figures, Path(out) / "tradeoff.png")]


def evaluate_tradeoff(
    generate: Generate,
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    grader: Grader,
    betas: Sequence[float] = BETAS,
    samples: int = 8,
    max_tokens: int = 512,
    top_k: int = 20,
    min_p: float = MIN_P,
    seed: int = 0,
    notify: Callable[[str], None] = lambda what: None,
) -> TradeoffReport:
    """Sample the sweep and compare.

    Args:
        generate: guided sampling of the policy, in process or by an engine.
        policy: the same policy as a transformers causal LM, for log-probabilities.
        betas: strengths; 0 is added, as the budget needs the unguided samples.
        samples: completions per prompt and beta; every beta uses the same random numbers.
        top_k, min_p: candidates per step, see `lenvm_rl.scoring.GuidanceSettings`.
    Raises:
        ValueError: a prompt without ground truth.
    """
    missing = [prompt.prompt_id for prompt in prompts if prompt.ground_truth is None]
    if missing:
        raise ValueError(
            f"{len(missing)} prompts have no ground_truth ({missing[0]!r}): accuracy is half of "
            "the trade-off. Give prompts with reference answers."
        )
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    truths = [prompt.ground_truth for prompt in prompts]
    by_beta: dict[float, list[Outcome]] = {}
    for beta in sorted({*map(float, betas), 0.0}):
        notify(f"beta {beta:g}")
        guide = GuidanceSettings(mode="tilt", beta=beta, top_k=top_k, min_p=min_p)
        sampled = sample_each(
            generate,
            prompts,
            ids,
            samples=samples,
            max_tokens=max_tokens,
            seed=seed,
            name="tradeoff",
            top_k=top_k,
            min_p=min_p,
            guides=[guide] * len(prompts),
        )
        by_beta[beta] = measure(policy, tokenizer, ids, truths, sampled, grader)
    guided = [_row(beta, outcomes, samples) for beta, outcomes in by_beta.items()]
    budget = budget_curve(by_beta[0.0])
    for row in guided:
        row["budget_accuracy"] = _accuracy_at(budget, row["length"])
    return TradeoffReport(_figures(guided, budget, len(prompts)), _tables(guided, budget))


def budget_curve(outcomes: Sequence[Outcome], points: int = 60) -> list[dict[str, Any]]:
    """Accuracy and mean length when the same samples are cut at B tokens, for `points` budgets."""
    lengths = np.array([outcome.length for outcome in outcomes])
    right = np.array([outcome.right for outcome in outcomes])
    quantiles = np.quantile(lengths, np.linspace(0, 1, points)).astype(int)
    budgets = np.unique(np.append(quantiles, 0))
    return [
        {
            "budget": int(budget),
            "length": float(np.minimum(lengths, budget).mean()),
            "accuracy": float((right & (lengths <= budget)).mean()),
            "finished": float((lengths <= budget).mean()),
        }
        for budget in budgets
    ]


def _row(beta: float, outcomes: Sequence[Outcome], samples: int) -> dict[str, Any]:
    right = np.array([outcome.right for outcome in outcomes], dtype=float).reshape(-1, samples)
    return {
        "beta": beta,
        "length": mean_of(outcomes, "length"),
        "accuracy": float(right.mean()),
        # Samples of one prompt go together: the error is that of the mean over prompts.
        "accuracy_se": float(right.mean(1).std(ddof=1) / len(right) ** 0.5)
        if len(right) > 1
        else float("nan"),
        "ended": mean_of(outcomes, "ended"),
        "logprob": mean_of(outcomes, "logprob"),
    }


def _tables(guided: list[dict[str, Any]], budget: list[dict[str, Any]]) -> dict[str, Any]:
    return {"guided": guided, "budget": budget}


def _figures(
    guided: Sequence[dict[str, Any]], budget: Sequence[dict[str, Any]], prompts: int
) -> dict[str, Any]:
    """Where the curves lie: at half of the unguided accuracy, and everywhere else."""
    free = next(row for row in guided if row["beta"] == 0)
    half = _length_at(budget, free["accuracy"] / 2)
    shorter = [row for row in guided if row["length"] < free["length"]]
    gaps = [row["accuracy"] - row["budget_accuracy"] for row in shorter]
    kept = _accuracy_at(guided, half) / free["accuracy"] if free["accuracy"] else float("nan")
    return {
        "prompts": prompts,
        "unguided_accuracy": free["accuracy"],
        "unguided_length": free["length"],
        "half_accuracy_length": half,
        "accuracy_kept_there": kept,
        "smallest_gap_to_budget": min(gaps, default=float("nan")),
        "largest_gap_to_budget": max(gaps, default=float("nan")),
    }


def _accuracy_at(curve: Sequence[dict[str, Any]], length: float) -> float:
    """Linear interpolation of accuracy at a mean length; NaN outside the curve."""
    points = sorted((row["length"], row["accuracy"]) for row in curve)
    x, y = zip(*points, strict=True)
    inside = x[0] <= length <= x[-1]
    return float(np.interp(length, x, y)) if inside else float("nan")


def _length_at(curve: Sequence[dict[str, Any]], accuracy: float) -> float:
    """Mean length at which a rising curve reaches `accuracy`."""
    points = sorted((row["accuracy"], row["length"]) for row in curve)
    x, y = zip(*points, strict=True)
    return float(np.interp(accuracy, x, y))
