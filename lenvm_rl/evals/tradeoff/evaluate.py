"""Trade-off: what does a shorter answer cost? Accuracy against length, beside budgets.

    guided     p' ~ p exp(beta u) for a sweep of beta (LenVM figure 2)
    budget     the unguided samples truncated at B tokens, for a sweep of B: unfinished is wrong
    prompted   the budget B in the prompt, unguided (optional, for policies that read instructions)
    thinking   vLLM's `thinking_token_budget` B, unguided (optional, by a server whose policy thinks
               between marks: the server ends the thinking after B tokens, the answer stays free)

Same prompts and candidates throughout, and beta = 0 is the very sample that the budget truncates.
Lengths are response tokens without EOS; the hard budget's mean length is that of the truncated
samples. Accuracy is pass@1; pass@k is estimated without bias from all samples of a prompt.

    OUT/rollouts/ARM   completions of one beta or budget: a rollout file
    OUT/tradeoff.*     figures, tables, picture
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lenvm_rl.evals.arms import (
    Arm,
    Grader,
    Outcome,
    mean,
    mean_quality,
    open_source,
    read_outcomes,
)
from lenvm_rl.evals.result import Result
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.run import TokenSampling
from lenvm_rl.sampling.server.engine import ServerSettings

BETAS = (-200.0, -100.0, -50.0, -25.0, -12.0, -6.0, -3.0, 0.0, 3.0, 6.0)
SMALL = {"prompts": "demo:48", "n": 4}
HEADLINE = (
    ("unguided_accuracy", "accuracy unguided", ".1%"),
    ("unguided_length", "tokens unguided", ".0f"),
    ("accuracy_kept_there", "kept where a hard budget keeps half", ".1%"),
    ("largest_gap_to_budget", "largest lead over the hard budget", ".1%"),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to sample."""

    betas: Sequence[float] = BETAS
    """Strengths of the tilt; 0 is added, as the budget needs the unguided samples."""
    prompt_budgets: Sequence[int] = ()
    """Baseline: budgets in tokens, asked for in the prompt."""
    prompt_template: str = "\n\nUse at most {budget} tokens."
    """How: appended to the user message, with {budget} in it."""
    thinking_budgets: Sequence[int] = ()
    """Baseline: thinking tokens that a server allows."""
    n: int = 8
    """Completions per prompt and setting; every beta uses the same random numbers."""
    max_tokens: int = 512
    """Longest response in tokens, EOS included."""
    temperature: float = 1.0
    """Divides the logits, of guided completions too; take what the value model was trained on."""
    top_p: float = 1.0
    """Candidates: the smallest set with this mass ..."""
    top_k: int = 20
    """Maximum number of candidates per step, see `lenvm_rl.guidance.GuidanceSettings`."""
    min_p: float = GuidanceSettings.min_p
    """Their least share of the most probable one's probability (the paper: 0.01, no top-k)."""
    seed: int = 0
    """Seed of all samples."""

    def __post_init__(self) -> None:
        for name in ("n", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("prompt_budgets", "thinking_budgets"):
            if not all(budget >= 1 for budget in getattr(self, name)):
                raise ValueError(f"{name} must be at least 1 token, got {getattr(self, name)}.")
        if self.prompt_budgets and "{budget}" not in self.prompt_template:
            raise ValueError(
                f"prompt_template {self.prompt_template!r} does not say the budget: put "
                "{budget} where the number belongs."
            )
        GuidanceSettings(**self.candidates)
        TokenSampling(temperature=self.temperature)

    @property
    def candidates(self) -> dict[str, Any]:
        """What tokens guided and unguided completions choose among."""
        return {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}

    @property
    def sampling(self) -> TokenSampling:
        """Of unguided completions: the candidates that guided ones name in their settings."""
        return TokenSampling(temperature=self.temperature, seed=self.seed, **self.candidates)

    def arms(self, prompts: Sequence[Prompt]) -> list[tuple[str, float, Arm]]:
        """(table, beta or B, arm) of everything that is sampled."""

        def arm(name: str, asked: Sequence[Prompt], stream: str, **fields: Any) -> Arm:
            common = {"n": self.n, "max_tokens": self.max_tokens}
            return Arm(name=name, prompts=asked, stream=stream, **common, **fields)

        found: list[tuple[str, float, Arm]] = []
        for beta in sorted({*map(float, self.betas), 0.0}):
            guide = GuidanceSettings(mode="tilt", beta=beta, **self.candidates)
            guides = [guide] * len(prompts) if beta else None
            name = f"beta{beta:g}" if beta else "unguided"
            found.append(("guided", beta, arm(name, prompts, "tradeoff", guides=guides)))
        for b in self.prompt_budgets:
            said = [_asking(prompt, self.prompt_template, b) for prompt in prompts]
            found.append(("prompted", b, arm(f"prompted{b}", said, "prompted")))
        for b in self.thinking_budgets:
            limited = arm(f"thinking{b}", prompts, "thinking", fields={"thinking_token_budget": b})
            found.append(("thinking", b, limited))
        return found


def run(
    policy: str | Path,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    grader: Grader | None,
    lenvm: str | Path | None = None,
    rollouts: str | Path | None = None,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    connection: ServerSettings = ServerSettings(),  # noqa: B008
    batch_size: int = 64,
    skip_logprobs: bool = False,
    chat_template_args: dict[str, Any] | None = None,
    progress: bool = False,
) -> Result:
    """Accuracy against length: a sweep of beta beside budgets, pass@1 and pass@k.

    Killed at any moment, the same command goes on where it stopped.

    Example: `lenvm eval tradeoff --policy demo --lenvm demo --prompts demo:64 --seed 7 --out
    runs/tradeoff`

    Example: `lenvm eval tradeoff --policy Qwen/Qwen2.5-3B-Instruct --server http://gpu:8000
    --prompts gsm8k --betas=-1000,-100,-50,-20 --max-tokens 2048 -n 64 --min-p 0.01
    --prompt-budgets 200,300,400 --out runs/gsm8k`

    Args:
        policy: directory or hub name; with a server, of its tokenizer.
        prompts: with reference answers.
        out: directory to write to.
        lenvm: directory of the value model; not read with a server, which has its own.
        rollouts: directory with a rollout file of each arm; they are evaluated, nothing is sampled.
            The policy is loaded for log-probabilities, unless a server is named.
        grader: of the prompts.
        settings: what to ask for, and how to sample.
        connection: servers that sample instead of this process.
        batch_size: rows generated at once in this process.
        skip_logprobs: leave out log-probabilities, a pass of the policy over all completions.
        chat_template_args: what the chat template gets besides the messages.
    Raises:
        ValueError: neither a value model nor a server nor rollouts; no grader; prompts without
            ground truth; completions that could not be made.
    """
    from lenvm_rl.evals.tradeoff.draw import draw

    _check(prompts, grader)
    if settings.thinking_budgets and rollouts is None and not connection.server:
        raise ValueError(
            "thinking budgets are kept by vLLM's server (a policy with a reasoning parser): name "
            "one with --server, or leave --thinking-budgets out."
        )
    source = open_source(
        policy,
        lenvm,
        prompts,
        max_tokens=settings.max_tokens,
        sampling=settings.sampling,
        rollouts=rollouts,
        connection=connection,
        max_batch=batch_size,
        chat_template_args=chat_template_args,
        progress=progress,
    )
    folder = Path(rollouts or Path(out) / "rollouts")
    for _, _, arm in settings.arms(prompts):
        source.fill(arm, folder, whole=True)
    result = evaluate(
        folder,
        prompts,
        source.tokenizer,
        policy=None if skip_logprobs else source.policy,
        grader=grader,
        settings=settings,
    )
    result.save(out)
    draw(result, out)
    return result


def evaluate(
    rollouts: str | Path,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    *,
    grader: Grader | None,
    policy: Any | None = None,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> Result:
    """Compare the completions of every arm.

    Args:
        rollouts: directory with a rollout file of each arm (`Settings.arms`).
        policy: the policy as a transformers causal LM, for log-probabilities; None leaves them
            undefined.
    Returns:
        Tables guided (per beta), budget (per B), and prompted and thinking where they were asked
        for.
    Raises:
        ValueError: a prompt without ground truth, or with other numbers of completions than others.
    """
    _check(prompts, grader)
    tables: dict[str, list[dict[str, Any]]] = {"guided": [], "budget": []}
    for table, x, arm in settings.arms(prompts):
        path = Path(rollouts) / arm.name
        outcomes = read_outcomes(path, prompts, tokenizer, policy=policy, grader=grader)
        missing = sum(not outcome.came for outcome in outcomes)
        if missing:
            raise ValueError(
                f"{path} lacks {missing} of {len(outcomes)} completions, which are no answers of "
                "length zero: sample them, every prompt with as many as the others."
            )
        n = len(outcomes) // len(prompts)
        key = "beta" if table == "guided" else "budget"
        tables.setdefault(table, []).append({key: x, **_row(outcomes, n)})
        if arm.name == "unguided":
            tables["budget"] = budget_curve(outcomes, tokenizer, n=n)
    for row in tables["guided"]:
        row["budget_accuracy"] = _accuracy_at(tables["budget"], row["length"])
    figures = _figures(tables["guided"], tables["budget"], len(prompts))
    figures["data_sources"] = sorted({prompt.data_source for prompt in prompts})
    return Result("tradeoff", figures, tables, HEADLINE)


def budget_curve(
    outcomes: Sequence[Outcome], tokenizer: Any, points: int = 60, *, n: int = 1
) -> list[dict[str, Any]]:
    """Accuracy, mean length and text quality of the same samples truncated at B tokens, for
    `points` budgets.

    Args:
        outcomes: `n` of each prompt side by side.
    """
    lengths = np.array([outcome.length for outcome in outcomes])
    correct = np.array([bool(outcome.correct) for outcome in outcomes])
    quantiles = np.quantile(lengths, np.linspace(0, 1, points)).astype(int)
    budgets = np.unique(np.append(quantiles, 0))
    return [
        {
            "budget": int(budget),
            "length": float(np.minimum(lengths, budget).mean()),
            "accuracy": float((correct & (lengths <= budget)).mean()),
            "finished": float((lengths <= budget).mean()),
            **mean_quality([outcome.truncated(int(budget), tokenizer) for outcome in outcomes]),
            **_pass_at(correct & (lengths <= budget), n),
        }
        for budget in budgets
    ]


def _check(prompts: Sequence[Prompt], grader: Grader | None) -> None:
    if grader is None:
        raise ValueError(
            f"nothing grades these prompts (data source {prompts[0].data_source!r}), but "
            "accuracy is half of the trade-off: name a grader with --grader, or a function as "
            "package.module:function."
        )
    missing = [prompt.prompt_id for prompt in prompts if prompt.ground_truth is None]
    if missing:
        raise ValueError(
            f"{len(missing)} prompts have no ground_truth ({missing[0]!r}): accuracy is half of "
            "the trade-off. Give prompts with reference answers."
        )


def _asking(prompt: Prompt, template: str, budget: int) -> Prompt:
    *before, last = prompt.messages
    said = {**last, "content": last["content"] + template.replace("{budget}", str(budget))}
    return replace(prompt, messages=[*before, said])


def _row(outcomes: Sequence[Outcome], n: int) -> dict[str, Any]:
    correct = np.array([bool(outcome.correct) for outcome in outcomes]).reshape(-1, n)
    # Samples of one prompt go together: the error is that of the mean over prompts.
    several = len(correct) > 1
    error = correct.mean(1).std(ddof=1) / len(correct) ** 0.5 if several else math.nan
    return {
        "length": mean([outcome.length for outcome in outcomes]),
        "accuracy": float(correct.mean()),
        "accuracy_se": float(error),
        "ended": mean([outcome.ended for outcome in outcomes]),
        **mean_quality(outcomes),
        **_pass_at(correct.reshape(-1), n),
    }


def _pass_at(correct: np.ndarray, n: int) -> dict[str, float]:
    """pass@k for k = 1, 2, 4, ... up to `n`, means over prompts."""
    counts = correct.reshape(-1, n).sum(1)
    ks = [2**i for i in range(n.bit_length())]
    return {f"pass@{k}": float(np.mean([pass_at_k(n, int(c), k) for c in counts])) for k in ks}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that k of the samples, drawn without replacement, hold a correct one.

        1 - C(n - c, k) / C(n, k)

    The unbiased estimate of pass@k from n samples of which c are correct (Chen et al., 2107.03374).

    Raises:
        ValueError: k outside [1, n], or c outside [0, n].
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(
            f"pass@{k} of {samples} samples with {correct} correct is not defined: k must be in "
            f"[1, {samples}] and the correct ones in [0, {samples}]."
        )
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


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
