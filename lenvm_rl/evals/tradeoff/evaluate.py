"""What does a shorter answer cost? Accuracy against length: the tilt, beside budgets.

    guided     p' ~ p exp(beta u) for a sweep of beta (LenVM figure 2)
    budget     the unguided samples cut at B tokens, for a sweep of B: unfinished counts as wrong
    prompted   the budget B in the prompt, unguided (optional, for policies that read instructions)
    thinking   vLLM's `thinking_token_budget` B, unguided (optional, by a server whose policy thinks
               between marks: the server ends the thinking after B tokens, the answer stays free)

Same prompts and candidates throughout, and beta = 0 is the very sample that the budget cuts.
Lengths are response tokens without EOS; the hard budget's mean length is that of the cut samples.
Accuracy is pass@1; pass@k is estimated without bias from all samples of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lenvm_rl.evals.outcomes import Grader, Outcome, mean_of, measure, pass_at_k
from lenvm_rl.evals.result import finite, save_results
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.completion_cache import Generate
from lenvm_rl.sampling.each_prompt import MIN_P, sample_each
from lenvm_rl.sampling.encoding import encode_prompt

BETAS = (-200.0, -100.0, -50.0, -25.0, -12.0, -6.0, -3.0, 0.0, 3.0, 6.0)


HEADLINE = (
    ("unguided_accuracy", "accuracy unguided", ".1%"),
    ("unguided_length", "tokens unguided", ".0f"),
    ("accuracy_kept_there", "kept where a hard budget keeps half", ".1%"),
    ("largest_gap_to_budget", "largest lead over the hard budget", ".1%"),
)


@dataclass(frozen=True, kw_only=True)
class TradeoffSettings:
    """What to sample."""

    betas: Sequence[float] = BETAS
    """Strengths; 0 is added, as the budget needs the unguided samples."""
    prompt_budgets: Sequence[int] = ()
    """Tokens asked for in the prompt."""
    prompt_template: str = "\n\nUse at most {budget} tokens."
    """Appended to the user message, with `{budget}` in it."""
    thinking_budgets: Sequence[int] = ()
    """Thinking tokens that the server allows."""
    samples: int = 8
    """Completions per prompt and setting; every beta uses the same random numbers."""
    max_tokens: int = 512
    top_k: int = 20
    """Candidates per step, see `lenvm_rl.guidance.GuidanceSettings`."""
    min_p: float = MIN_P
    """The same (the paper's trade-off: min-p 0.01, no top-k)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1 per prompt, got {self.samples}.")
        for name in ("prompt_budgets", "thinking_budgets"):
            if not all(budget >= 1 for budget in getattr(self, name)):
                raise ValueError(f"{name} must be at least 1 token, got {getattr(self, name)}.")
        if self.prompt_budgets and "{budget}" not in self.prompt_template:
            raise ValueError(
                f"prompt_template {self.prompt_template!r} does not say the budget: put "
                "{budget} where the number belongs."
            )
        GuidanceSettings(top_k=self.top_k, min_p=self.min_p)


@dataclass(frozen=True, eq=False)
class TradeoffReport:
    """Figures and tables of one evaluation."""

    figures: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]]
    """guided (per beta), budget (per B), and prompted and thinking where they were asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def save(self, out: str | Path) -> list[Path]:
        """Write tradeoff.json, .jsonl, one CSV per table, and tradeoff.png into `out`."""
        from lenvm_rl.evals.tradeoff.draw import plot_tradeoff

        paths = save_results(out, "tradeoff", self.figures, self.tables, HEADLINE)
        return [*paths, plot_tradeoff(self.tables, self.figures, Path(out) / "tradeoff.png")]


def evaluate_tradeoff(
    generate: Generate,
    policy: Any | None,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    grader: Grader,
    settings: TradeoffSettings | None = None,
    thinking: Callable[[int], Generate] | None = None,
    pictures: bool = False,
    notify: Callable[[str], None] = lambda what: None,
) -> TradeoffReport:
    """Sample the sweep and compare.

    Args:
        generate: guided sampling of the policy, in process or by an engine.
        policy: the same policy as a transformers causal LM, for log-probabilities; None leaves
            them undefined.
        thinking: B -> unguided sampling with at most B thinking tokens.
        pictures: `generate` takes `pictures.PicturedRequest`; else pictures are refused.
    Raises:
        ValueError: a prompt without ground truth, thinking budgets without `thinking`, or
            completions that a server could not make.
    """
    settings = settings or TradeoffSettings()
    _check(prompts, settings, thinking)
    truths = [prompt.ground_truth for prompt in prompts]

    def outcomes(
        name: str,
        generate: Generate,
        prompts: Sequence[Prompt],
        guide: GuidanceSettings | None = None,
    ) -> list[Outcome]:
        texts = [replace(prompt, images=[]) if pictures else prompt for prompt in prompts]
        ids = [encode_prompt(tokenizer, prompt) for prompt in texts]
        sampled = sample_each(
            generate,
            prompts,
            ids,
            samples=settings.samples,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
            name=name,
            top_k=settings.top_k,
            min_p=settings.min_p,
            guides=[guide] * len(prompts),
        )
        failed = sum(completion.finish_reason == "error" for _, completion in sampled)
        if failed:
            raise ValueError(
                f"{failed} of {len(sampled)} completions could not be made: run the same command "
                "again, what is done is kept."
            )
        return measure(policy, tokenizer, ids, truths, sampled, grader)

    by_beta: dict[float, list[Outcome]] = {}
    for beta in sorted({*map(float, settings.betas), 0.0}):
        notify(f"beta {beta:g}")
        guide = GuidanceSettings(mode="tilt", beta=beta, top_k=settings.top_k, min_p=settings.min_p)
        by_beta[beta] = outcomes("tradeoff", generate, prompts, guide)
    n = settings.samples
    guided = [{"beta": beta, **_row(found, n)} for beta, found in by_beta.items()]
    budget = budget_curve(by_beta[0.0], samples=n)
    for row in guided:
        row["budget_accuracy"] = _accuracy_at(budget, row["length"])
    tables = {"guided": guided, "budget": budget}
    for b in settings.prompt_budgets:
        notify(f"budget {b} in the prompt")
        said = [_asking(prompt, settings.prompt_template, b) for prompt in prompts]
        row = {"budget": b, **_row(outcomes("prompted", generate, said), n)}
        tables.setdefault("prompted", []).append(row)
    for b in settings.thinking_budgets:
        notify(f"{b} thinking tokens")
        assert thinking is not None
        row = {"budget": b, **_row(outcomes("thinking", thinking(b), prompts), n)}
        tables.setdefault("thinking", []).append(row)
    figures = _figures(guided, budget, len(prompts))
    figures["data_sources"] = sorted({prompt.data_source for prompt in prompts})
    return TradeoffReport(figures, tables)


def budget_curve(
    outcomes: Sequence[Outcome], points: int = 60, *, samples: int = 1
) -> list[dict[str, Any]]:
    """Accuracy and mean length when the same samples are cut at B tokens, for `points` budgets.

    Args:
        outcomes: `samples` of each prompt side by side.
    """
    lengths = np.array([outcome.length for outcome in outcomes])
    right = np.array([bool(outcome.right) for outcome in outcomes])
    quantiles = np.quantile(lengths, np.linspace(0, 1, points)).astype(int)
    budgets = np.unique(np.append(quantiles, 0))
    return [
        {
            "budget": int(budget),
            "length": float(np.minimum(lengths, budget).mean()),
            "accuracy": float((right & (lengths <= budget)).mean()),
            "finished": float((lengths <= budget).mean()),
            **_pass_at(right & (lengths <= budget), samples),
        }
        for budget in budgets
    ]


def _check(
    prompts: Sequence[Prompt],
    settings: TradeoffSettings,
    thinking: Callable[[int], Generate] | None,
) -> None:
    missing = [prompt.prompt_id for prompt in prompts if prompt.ground_truth is None]
    if missing:
        raise ValueError(
            f"{len(missing)} prompts have no ground_truth ({missing[0]!r}): accuracy is half of "
            "the trade-off. Give prompts with reference answers."
        )
    if settings.thinking_budgets and thinking is None:
        raise ValueError(
            "thinking budgets are kept by vLLM's server (a policy with a reasoning parser): name "
            "one with --server, or leave --thinking-budgets out."
        )


def _asking(prompt: Prompt, template: str, budget: int) -> Prompt:
    *before, last = prompt.messages
    said = {**last, "content": last["content"] + template.replace("{budget}", str(budget))}
    return replace(prompt, messages=[*before, said])


def _row(outcomes: Sequence[Outcome], samples: int) -> dict[str, Any]:
    right = np.array([bool(outcome.right) for outcome in outcomes]).reshape(-1, samples)
    # Samples of one prompt go together: the error is that of the mean over prompts.
    error = right.mean(1).std(ddof=1) / len(right) ** 0.5 if len(right) > 1 else float("nan")
    return {
        "length": mean_of(outcomes, "length"),
        "accuracy": float(right.mean()),
        "accuracy_se": float(error),
        "ended": mean_of(outcomes, "ended"),
        "logprob": mean_of(outcomes, "logprob"),
        **_pass_at(right.reshape(-1), samples),
    }


def _pass_at(right: np.ndarray, samples: int) -> dict[str, float]:
    """pass@k for k = 1, 2, 4, ... up to `samples`, means over prompts."""
    counts = right.reshape(-1, samples).sum(1)
    ks = [2**i for i in range(samples.bit_length())]
    return {
        f"pass@{k}": float(np.mean([pass_at_k(samples, int(c), k) for c in counts])) for k in ks
    }


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
        **{f"unguided_{name}": x for name, x in free.items() if name.startswith("pass@")},
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
