"""Does a policy end where it is asked to? Guided length control beside its baselines.

For every prompt, targets are quantiles of the policy's own lengths there, so that each can be
reached (or given lengths, the same for all prompts). Every control (equal, at_most, at_least) is
asked for at every target. Beside the guided completions:

    unguided   the policy's own samples, from the same candidates, scored against the same targets
    cut        the same samples, cut at the target (`max_tokens`): what engines offer today
    prompted   the target in words, for policies that follow instructions (optional)

Reported per control and method: Length Score and deviation (`core.lifebench`), accuracy, the share
that ended by itself, and the mean log-probability of the text under the unguided policy, which
says how far guidance has left it. The target counts response tokens without EOS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.core import CONTROLS, lifebench_deviation, lifebench_score
from lenvm_rl.evals.completion_cache import Generate
from lenvm_rl.evals.encoding import encode_prompt
from lenvm_rl.evals.outcomes import Grader, Outcome, lengths_of, mean_of, measure, share_right
from lenvm_rl.evals.pictures import pictured
from lenvm_rl.evals.results import finite, save_results
from lenvm_rl.model.generate import Completion, Request
from lenvm_rl.rollouts.prompts import Prompt
from lenvm_rl.rollouts.resume import completion_seed
from lenvm_rl.scoring import GuidanceSettings

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
MIN_P = GuidanceSettings.min_p


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """What to sample."""

    controls: Sequence[str] = CONTROLS
    quantiles: Sequence[float] = QUANTILES
    """Of each prompt's own unguided lengths: the targets."""
    targets: Sequence[int] | None = None
    """Lengths in tokens for all prompts, instead of quantiles."""
    samples: int = 4
    """Guided completions per prompt, control and target."""
    unguided_samples: int = 32
    """Unguided completions per prompt: the baselines, and what targets are read off."""
    max_tokens: int = 512
    seed: int = 0
    prompt_template: str | None = None
    """Adds the baseline `prompted`: appended to the user message, with `{target}` in it."""
    top_k: int = 20
    """Candidates per step, at most ..."""
    min_p: float = MIN_P
    """... and none below this share of the most probable one's probability."""
    short_weight: float = 5.0
    """equal: what a token too few costs, in tokens too many. The Length Score falls 2.5 times as
    fast below the target as above it (5 |d| against 2 d); and a continuation is valued as the
    policy would write it unguided, so guidance can still end it earlier, but not make it longer. On
    the shipped policy 1, 2.5, 5 and 10 score 82, 89, 92 and 93; 1 is the paper's distance."""

    def __post_init__(self) -> None:
        if not all(0 < q < 1 for q in self.quantiles):
            raise ValueError(f"quantiles must lie in (0, 1), got {list(self.quantiles)}.")
        if self.targets is not None and not all(n >= 1 for n in self.targets):
            raise ValueError(f"targets must be at least 1 token, got {list(self.targets)}.")
        if self.unguided_samples < 4:
            raise ValueError(
                f"unguided_samples is {self.unguided_samples}: the range of lengths that a prompt "
                "can reach is read off them, take at least 4."
            )
        GuidanceSettings(top_k=self.top_k, min_p=self.min_p, short_weight=self.short_weight)
        if self.prompt_template is not None and "{target}" not in self.prompt_template:
            raise ValueError(
                f"prompt_template {self.prompt_template!r} does not say the target: put "
                "{target} where the number belongs."
            )


@dataclass(frozen=True, eq=False)
class ControlReport:
    """Figures and tables of one evaluation."""

    figures: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]]
    """summary (per control and method), targets (per goal too), points (per completion)."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def save(self, out: str | Path) -> list[Path]:
        """Write control.json, .jsonl, one CSV per table, and control.png into `out`."""
        from lenvm_rl.evals.control_plots import plot_control

        paths = save_results(out, "control", self.figures, self.tables)
        return [*paths, plot_control(self.tables, Path(out) / "control.png")]


def evaluate_control(
    generate: Generate,
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    grader: Grader | None,
    settings: ControlSettings | None = None,
    notify: Callable[[str], None] = lambda what: None,
) -> ControlReport:
    """Sample and score everything.

    Args:
        generate: guided sampling of the policy, in process or by an engine.
        policy: the same policy as a transformers causal LM, for log-probabilities.
        prompts: what to answer; `ground_truth` is what the grader gets.
        grader: None leaves accuracy undefined (NaN).
        notify: told what is sampled next.
    """
    settings = settings or ControlSettings()
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    truths = [prompt.ground_truth for prompt in prompts]

    def sample(
        name: str, ids: Sequence[Sequence[int]], guides: Sequence[GuidanceSettings | None]
    ) -> list[Outcome]:
        completions = sample_each(
            generate,
            prompts,
            ids,
            samples=settings.unguided_samples if name == "free" else settings.samples,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
            name=name,
            top_k=settings.top_k,
            min_p=settings.min_p,
            guides=guides,
        )
        return measure(policy, tokenizer, ids, truths, completions, grader)

    nothing = [None] * len(prompts)
    notify("unguided")
    unguided = sample("free", ids, nothing)
    if settings.targets is None:
        targets = reachable_targets(unguided, len(prompts), settings.quantiles)
    else:
        targets = {str(n): [n] * len(prompts) for n in settings.targets}
    points: list[dict[str, Any]] = []
    for control in settings.controls:
        points += _rows("unguided", control, targets, unguided)
        points += _rows("cut", control, targets, unguided)
        for goal, asked in targets.items():
            notify(f"{control} {goal}")
            name, here = f"{control}-{goal}", {goal: asked}
            guides = [
                GuidanceSettings(
                    mode=control,
                    target=n,
                    top_k=settings.top_k,
                    min_p=settings.min_p,
                    short_weight=settings.short_weight,
                )
                for n in asked
            ]
            points += _rows("guided", control, here, sample(name, ids, guides))
            if settings.prompt_template is not None:
                said = [
                    encode_prompt(tokenizer, _asking(prompt, settings.prompt_template, n))
                    for prompt, n in zip(prompts, asked, strict=True)
                ]
                points += _rows("prompted", control, here, sample(f"{name}-said", said, nothing))
    return _report(points, unguided, settings)


def reachable_targets(
    outcomes: Sequence[Outcome], prompts: int, quantiles: Sequence[float]
) -> dict[str, list[int]]:
    """ "p<percent>" -> target of every prompt: lengths that the prompt's own completions have.

    Raises:
        ValueError: a prompt of which no completion ended.
    """
    lengths: list[list[int]] = [[] for _ in range(prompts)]
    for outcome in outcomes:
        if outcome.ended:
            lengths[outcome.prompt].append(outcome.length)
    for index, found in enumerate(lengths):
        if not found:
            raise ValueError(
                f"no completion of prompt {index} ended within the token limit, so nothing is "
                "known of the lengths it can reach: raise max_tokens or unguided_samples."
            )
    ordered = [sorted(found) for found in lengths]
    return {
        f"p{100 * q:g}": [
            max(1, found[min(int(q * len(found)), len(found) - 1)]) for found in ordered
        ]
        for q in quantiles
    }


def sample_each(
    generate: Generate,
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    *,
    samples: int,
    max_tokens: int,
    seed: int,
    name: str,
    top_k: int,
    min_p: float,
    guides: Sequence[GuidanceSettings | None],
) -> list[tuple[int, Completion]]:
    """`samples` completions of every prompt, as (index of the prompt, completion).

    Unguided completions choose among the same candidates as guided ones: dropping improbable
    tokens alone makes a policy better, and guidance shall not get the credit for it.

    Args:
        ids: token ids of each prompt.
        name: of the random stream: the same name gives the same random numbers.
        top_k, min_p: the candidates, which guided requests name in their settings.
        guides: settings of each prompt.
    """
    free = [guide is None or guide.changes_nothing for guide in guides]
    which = [i for i in range(len(prompts)) for _ in range(samples)]
    requests = [
        Request(
            prompt_ids=ids[i],
            max_tokens=max_tokens,
            top_k=top_k if free[i] else 0,
            min_p=min_p if free[i] else 0.0,
            seed=completion_seed(seed, f"{name}/{prompts[i].prompt_id}", k % samples),
        )
        for k, i in enumerate(which)
    ]
    requests = [
        pictured(request, prompts[i]) if prompts[i].images else request
        for request, i in zip(requests, which, strict=True)
    ]
    return list(zip(which, generate(requests, [guides[i] for i in which]), strict=True))


def _asking(prompt: Prompt, template: str, target: int) -> Prompt:
    *before, last = prompt.messages
    said = {**last, "content": last["content"] + template.replace("{target}", str(target))}
    return Prompt(
        prompt_id=prompt.prompt_id, messages=[*before, said], ground_truth=prompt.ground_truth
    )


def _rows(
    method: str, control: str, targets: dict[str, list[int]], outcomes: Sequence[Outcome]
) -> list[dict[str, Any]]:
    """One row per completion and target."""
    rows = []
    for goal, asked in targets.items():
        for outcome in outcomes:
            target = asked[outcome.prompt]
            within = outcome.ended and outcome.length <= target
            cut = method == "cut" and not within
            rows.append(
                {
                    "control": control,
                    "method": method,
                    "goal": goal,
                    "prompt": outcome.prompt,
                    "target": target,
                    "length": min(outcome.length, target) if cut else outcome.length,
                    "ended": outcome.ended and not cut,
                    "right": None if outcome.right is None else outcome.right and not cut,
                    "logprob": outcome.logprob,
                }
            )
    return rows


def _report(
    points: list[dict[str, Any]], unguided: Sequence[Outcome], settings: ControlSettings
) -> ControlReport:
    def grouped(*keys: str) -> list[dict[str, Any]]:
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for point in points:
            groups.setdefault(tuple(point[key] for key in keys), []).append(point)
        return [
            {**dict(zip(keys, values, strict=True)), **_scores(values[0], rows)}
            for values, rows in groups.items()
        ]

    summary = grouped("control", "method")
    figures: dict[str, Any] = {
        "prompts": len({point["prompt"] for point in points}),
        "samples": settings.samples,
        "unguided_accuracy": share_right([outcome.right for outcome in unguided]),
        "unguided_length": lengths_of(unguided).mean().item(),
        "unguided_logprob": mean_of(unguided, "logprob"),
    }
    for row in summary:
        for name in ("score", "deviation", "accuracy", "logprob"):
            figures[f"{row['control']}_{row['method']}_{name}"] = row[name]
    tables = {
        "summary": summary,
        "targets": grouped("control", "method", "goal"),
        "points": points,
    }
    return ControlReport(figures, tables)


def _scores(control: str, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over completions; a completion that never ended fails unless it was cut on purpose."""
    length = torch.tensor([row["length"] for row in rows], dtype=torch.float64)
    target = torch.tensor([row["target"] for row in rows], dtype=torch.float64)
    failed = torch.tensor([not row["ended"] and row["method"] != "cut" for row in rows])
    deviation = lifebench_deviation(length, target, failed=failed)
    return {
        "completions": len(rows),
        "target": target.mean().item(),
        "length": length.mean().item(),
        "score": lifebench_score(length, target, control=control, failed=failed).mean().item(),
        "deviation": 100 * deviation.abs().mean().item(),
        "accuracy": share_right([row["right"] for row in rows]),
        "ended": sum(row["ended"] for row in rows) / len(rows),
        "logprob": sum(row["logprob"] for row in rows) / len(rows),
    }
