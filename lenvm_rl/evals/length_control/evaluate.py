"""Length control: does a policy end where it is asked to? Guided, beside its baselines.

Every prompt is asked for every target in every way (`equal`, `at_most`, `at_least`). Targets are
lengths for all prompts (`targets`), or quantiles of the policy's own lengths at each prompt, so
that each can be reached (`quantiles`). Prompts with places for a length, LIFEBench's, say it in
words; the guide always gets the control and the target that are scored. (The reference's shipped
configuration guides by `equal` throughout; table 2 has an At Least below the unguided policy's,
which agrees with that.) Methods:

    unguided    the policy's own samples, among the same candidates, scored against the same targets
    guided      the LenVM's guidance
    truncated   the unguided samples, ended at the target (`max_tokens`): what engines offer today
    in_words    unguided, with `prompt_template` after the prompt
    countdown   unguided, with CAPEL's countdown after the prompt (`lifebench`), markers removed

A completion fails, and scores 0, when it does not end within `max_tokens`, when none came, or, at
given targets, when it is at most one token (word) long; failures are never dropped. Lengths are
response tokens without EOS, or words by LIFEBench's count. One ratio per language, tokens per word
of the unguided samples, gives guide and truncation their tokens when targets are words, and the
countdown its words when targets are tokens. What was written to meet the length stands beside every
row (`Outcome.quality`): `logprob`, `repetition`, `full_sentence`.

    OUT/rollouts/ARM        completions of one method, control and target: a rollout file
    OUT/length_control.*    figures, tables, picture
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.core import CONTROLS, lifebench_deviation, lifebench_score
from lenvm_rl.evals.arms import (
    QUALITY,
    Grader,
    Outcome,
    Source,
    mean,
    mean_quality,
    open_source,
    read_outcomes,
)
from lenvm_rl.evals.length_control import lifebench
from lenvm_rl.evals.length_control.plan import Goal, Plan, Settings
from lenvm_rl.evals.result import Result
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.server.engine import ServerSettings

SMALL = {"prompts": "demo:16", "n": 2}
HEADLINE = (
    ("equal_guided_score", "equal: score", ".1f"),
    ("equal_unguided_score", "equal unguided: score", ".1f"),
    ("at_most_guided_score", "at most: score", ".1f"),
    ("at_least_guided_score", "at least: score", ".1f"),
)

Row = dict[str, Any]


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
    """Ask for lengths and see what comes: score, deviation, accuracy, beside the baselines.

    Killed at any moment, the same command goes on where it stopped.

    Example: `lenvm eval length-control --policy demo --lenvm demo --prompts demo:24 --out
    runs/control`

    Example: `lenvm eval length-control --policy Qwen/Qwen2.5-7B-Instruct --server http://gpu:8000
    --prompts lifebench --out runs/lifebench`

    Args:
        policy: directory or hub name; with a server, of its tokenizer.
        prompts: with places for a length (LIFEBench's), or without.
        out: directory to write to.
        lenvm: directory of the value model; not read with a server, which has its own.
        rollouts: directory with a rollout file of each arm; they are evaluated, nothing is sampled.
            The policy is loaded for log-probabilities, unless a server is named.
        grader: None leaves accuracy undefined.
        settings: what to ask for, and how to sample.
        connection: servers that sample instead of this process.
        batch_size: rows generated at once in this process.
        skip_logprobs: leave out log-probabilities, a pass of the policy over all completions.
        chat_template_args: what the chat template gets besides the messages.
    Raises:
        ValueError: neither a value model nor a server nor rollouts; see `Settings`.
    """
    from lenvm_rl.evals.length_control.draw import draw

    plan = Plan(prompts, settings)
    source = open_source(
        policy,
        lenvm,
        prompts,
        max_tokens=plan.max_tokens,
        sampling=settings.sampling,
        rollouts=rollouts,
        connection=connection,
        max_batch=batch_size,
        chat_template_args=chat_template_args,
        progress=progress,
    )
    folder = Path(rollouts or Path(out) / "rollouts")
    if rollouts is None:
        sample(plan, source, folder)
        settings = replace(settings, n=plan.n, unguided_n=plan.unguided_n)
    result = evaluate(
        folder,
        prompts,
        source.tokenizer,
        policy=None if skip_logprobs else source.policy,
        grader=grader,
        settings=settings,
    )
    if connection.server and rollouts is None:
        failed = {"failed_requests": dict(source.failures)}
        result = replace(result, figures={**result.figures, **failed})
    result.save(out)
    draw(result, out)
    return result


def evaluate(
    rollouts: str | Path,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    *,
    policy: Any | None = None,
    grader: Grader | None = None,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> Result:
    """Score the completions of every arm.

    Args:
        rollouts: directory with a rollout file of each arm (`plan.Plan`).
        prompts: that were asked; `ground_truth` is what the grader gets.
        policy: the policy as a transformers causal LM, for log-probabilities; None leaves them
            undefined.
        grader: None leaves accuracy undefined.
        settings: where `n` is None, all completions of a file are taken.
    """
    plan = Plan(prompts, settings)

    @cache
    def read(name: str) -> list[Outcome]:
        n = settings.unguided_n if name.startswith("unguided") else settings.n
        path = Path(rollouts) / name
        return read_outcomes(path, prompts, tokenizer, policy=policy, grader=grader, n=n)

    unguided = [outcome for arm in plan.unguided() for outcome in read(arm.name)]
    goals = plan.goals(unguided)
    points: list[Row] = []
    for method, control, name in plan.questions:
        outcomes = read(plan.arm(method, control, goals[name]).name)
        if method == "truncated":
            limits = goals[name].tokens
            outcomes = [o.truncated(limits[o.prompt], tokenizer) for o in outcomes]
        elif method == "countdown":
            outcomes = [_uncounted(outcome, tokenizer) for outcome in outcomes]
        points += [_row(plan, method, control, goals[name], outcome) for outcome in outcomes]
    return _result(plan, points, unguided)


def sample(plan: Plan, source: Source, folder: Path) -> None:
    """Fill the rollout file of every arm; unguided ones first, because goals are read off them."""
    unguided: list[Outcome] = []
    for arm in plan.unguided():
        source.fill(arm, folder)
        unguided += read_outcomes(folder / arm.name, plan.prompts, source.tokenizer, n=arm.n)
    goals = plan.goals(unguided)
    arms = [plan.arm(method, control, goals[name]) for method, control, name in plan.questions]
    for arm in {arm.name: arm for arm in arms}.values():
        source.fill(arm, folder)


def _uncounted(outcome: Outcome, tokenizer: Any) -> Outcome:
    """A countdown without its markers; its log-probabilities stay those of what was written."""
    text = lifebench.without_markers(outcome.text)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return replace(outcome, text=text, token_ids=ids)


def _row(plan: Plan, method: str, control: str, goal: Goal, outcome: Outcome) -> Row:
    """A completion and its score."""
    words = lifebench.count_words(outcome.text)
    length = words if plan.settings.unit == "words" else outcome.length
    target = goal.targets[outcome.prompt]
    # a truncated response stops where it was told to; a quantile can be one token
    unfinished = not outcome.ended and method != "truncated"
    failed = not outcome.came or unfinished or (plan.fixed and length <= 1)
    asked, got = (torch.tensor(x, dtype=torch.float64) for x in (target, length))
    score = lifebench_score(got, asked, control=control, failed=torch.tensor(failed)).item()
    deviation = lifebench_deviation(got, asked, failed=torch.tensor(failed)).item()
    return {
        "control": control,
        "method": method,
        "goal": goal.name,
        "prompt": outcome.prompt,
        "language": plan.languages[outcome.prompt],
        "category": str(plan.prompts[outcome.prompt].extra.get("category", "")),
        "target": target,
        "length": length,
        "tokens": outcome.length,
        "words": words,
        "came": outcome.came,
        "ended": outcome.ended,
        "forced": outcome.forced,
        "failed": failed,
        "correct": outcome.correct,
        **outcome.quality,
        "score": score,
        "deviation": deviation,
    }


def _result(plan: Plan, points: list[Row], unguided: Sequence[Outcome]) -> Result:
    """Tables: summary (per control and method), targets and languages (finer), points (per
    completion); at given targets also table2 (this run and the paper) and official (as the
    official programs print it)."""
    settings = plan.settings
    # figures of version 0.1 to the last bit: its two evaluations summed in two ways
    grouped = partial(_grouped, points, average=mean if plan.fixed else _torch_mean)
    summary = grouped("control", "method")
    targets = grouped("control", "method", "goal")
    own = [row for row in targets if row["method"] not in ("unguided", "truncated")] or targets
    figures: dict[str, Any] = {
        "prompts": len(plan.prompts),
        "samples": own[0]["completions"] // len(plan.prompts),
        "unit": settings.unit,
        "targets": list(plan.targets or [name for _, name in plan.cells]),
        "asked_in_words": plan.asks,
        "tokens_per_word": plan.tokens_per_word(unguided),
        "unguided_accuracy": mean([outcome.correct for outcome in unguided]),
        "unguided_length": mean([outcome.length for outcome in unguided]),
        **{f"unguided_{name}": x for name, x in mean_quality(unguided).items()},
    }
    for row in summary:
        for name in ("score", "deviation", "failed", "forced", "accuracy", *QUALITY):
            figures[f"{row['control']}_{row['method']}_{name}"] = row[name]
    tables = {
        "summary": summary,
        "targets": targets,
        "languages": grouped("control", "method", "language"),
    }
    if plan.fixed:
        tables["table2"] = [*_table_2(summary, plan.methods), *lifebench.table_2_rows()]
        tables["official"] = _official(points)
        for row in tables["official"]:
            name = f"{row['control']}_{row['method']}_official_{row['scorer']}_score"
            figures[name] = row["score"]
    return Result("length_control", figures, {**tables, "points": points}, HEADLINE)


def _grouped(
    points: Sequence[Row], *keys: str, average: Callable[[Sequence[float]], float]
) -> list[Row]:
    """Means over the completions of each group; deviation in percent, failures counted in."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for point in points:
        groups.setdefault(tuple(point[key] for key in keys), []).append(point)
    return [
        {
            **dict(zip(keys, values, strict=True)),
            "completions": len(rows),
            "target": mean([row["target"] for row in rows]),
            "length": mean([row["length"] for row in rows]),
            "score": average([row["score"] for row in rows]),
            "deviation": 100 * average([abs(row["deviation"]) for row in rows]),
            "failed": mean([row["failed"] for row in rows]),
            "accuracy": mean([row["correct"] for row in rows]),
            "ended": mean([row["ended"] for row in rows]),
            "forced": mean([row["forced"] for row in rows]),
            **{name: mean([row[name] for row in rows]) for name in QUALITY},
        }
        for values, rows in groups.items()
    ]


def _torch_mean(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).mean().item()


def _official(points: Sequence[Row]) -> list[Row]:
    """What LIFEBench's program and LenVM's fork of it would print."""
    cells: dict[tuple[str, str], dict[int, list[int | None]]] = {}
    for point in points:
        lengths = cells.setdefault((point["method"], point["control"]), {})
        length = point["length"] if point["came"] else None
        lengths.setdefault(point["target"], []).append(length)
    return [
        {
            "method": method,
            "control": control,
            "scorer": scorer,
            **lifebench.official_figures(lengths, control=control, scorer=scorer),
        }
        for (method, control), lengths in cells.items()
        for scorer in lifebench.SCORERS
    ]


def _table_2(summary: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    """One line per method in the paper's layout: deviation of Equal To, then the three scores."""
    lines = []
    for method in methods:
        mine = {row["control"]: row for row in summary if row["method"] == method}
        line: Row = {"source": "here", "model": method}
        for name, control, key in (
            ("deviation", "equal", "deviation"),
            *((control, control, "score") for control in CONTROLS),
        ):
            line[name] = mine[control][key] if control in mine else math.nan
        lines.append(line)
    return lines
