"""LenVM as a length term beside published length rewards: accuracy against length.

    python -m scripts.bench rl --out runs/bench_rl --jobs 2
    python -m scripts.bench rl --reduced            # one seed, the middle strength
    python -m scripts.bench rl --methods none,kimi,correct_lam0:1 --seeds 2
    python -m scripts.bench rl --methods all

GRPO on the shipped policy in a plain loop, not verl's trainer; the same data, optimiser, updates,
batch and seeds for every method (grpo/methods.py says what they are), sampled at temperature 1;
greedy figures stand beside. Each method at three strengths, three seeds. Each run is one process
with one thread; a run that is finished is not run again, so a bench that was killed
goes on, and one with more seeds or methods adds to what is there. Runs go seed by seed: what is
there when the bench is stopped is a whole table of fewer seeds.

Writes rl.json, rl.jsonl, rl_methods.csv, pareto.png, curves.png and drift.png to --out, one
JSON per run to --out/runs. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.evals.result import Result
from lenvm_rl.rollouts.atomic import write_json
from scripts.bench import harness
from scripts.bench.grpo.methods import Method, advantages, all_methods
from scripts.bench.grpo.training import References, Settings, World, lenvm_of, policy_of, train
from scripts.bench.harness import CONSOLE, part, show
from scripts.bench.plots import plot_curves, plot_drift, plot_pareto
from scripts.bench.pool import run_missing

FIGURES = ("accuracy", "length", "tokens_per_correct", "share_truncated")
BESIDE = ("greedy_accuracy", "greedy_length", "hard_accuracy", "hard_length")
TEMPERATURES = (1.0, 0.6, 0.0)
VOTES = 16
SHARES = tuple(percent / 100 for percent in range(95, 20, -5))
"""Of the untrained policy's length on the same prompts; the first update at each is reported."""
SMOOTHING = 3  # updates averaged before a length counts as reached

Run = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options(Settings, harness.Options):
    """The comparison."""

    methods: str | None = None
    """Comma-separated; `all`, or some of grpo/methods.py."""
    levels: str = "0,1,2"
    """Strengths: 0 weak, 1 middle, 2 strong; 3 beyond."""
    seeds: int = 3
    """Runs per method and strength."""
    jobs: int = 2
    """Runs at a time."""
    reduced: bool = False
    """One seed, the middle strength, 16 updates, 64 held-out problems."""
    out: Path = Path("runs/bench_rl")
    """Results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.levels.split(",")) <= set("0123"):
            raise ValueError(f"--levels {self.levels}: use some of 0, 1, 2, 3.")


def run(options: Options) -> dict[str, Any]:
    """All runs that are not there yet, the table and the figures."""
    if options.reduced:
        options = replace(options, levels="1", seeds=1, updates=16, eval_prompts=64)
    settings = part(options, Settings)
    levels = sorted({int(level) for level in options.levels.split(",")})
    methods = all_methods(options.methods.split(",") if options.methods else None, levels)
    folder = settings.folder(options.out / "runs")
    before = prepare(folder / "before.json", settings)
    # By the strength, not its level: other strengths under the same level are other runs.
    files = {
        folder / f"{m.label}-{seed}.json": (m, seed, settings, before["columns"])
        for seed in range(options.seeds)
        for m in methods
    }
    runs = run_missing(one_run, files, jobs=options.jobs)
    rows, start = compare(runs), before["start"]
    figures = {
        "runs": len(runs),
        "run_hours": sum(r["seconds"] for r in runs) / 3600,
        "before": start,
        "before_by_temperature": before["by_temperature"],
        "before_by_majority": before["majority"],
        "answer": answer(rows),
        "methods": rows,
        "settings": harness.settings(options),
    }
    Result("rl", figures, {"methods": rows}).save(options.out)
    plot_pareto(rows, (start["length"], start["accuracy"]), options.out / "pareto.png")
    plot_curves(runs, options.out / "curves.png")
    plot_drift(runs, options.out / "drift.png")
    show_rows(rows, start, before["by_temperature"], before["majority"])
    return figures


def one_run(
    method: Method, seed: int, settings: Settings, columns: References | None = None
) -> Run:
    """Train and evaluate; returns figures and the history of the updates.

    Deterministic given its arguments and the number of threads.
    """
    started = time.monotonic()
    world, bound = World(settings, columns), method.bind()
    policy, history = train(
        world,
        seed,
        lambda batch: advantages(method, batch, bound, lam=settings.lam),
        refreshes=method.refreshes,
        policy=policy_of(),
        lenvm=lenvm_of(settings.lenvm),
    )
    greedy = world.evaluate(policy, temperature=0.0)
    return {
        "method": method.name,
        "level": method.level,
        "family": method.family,
        "strength": method.strength,
        "seed": seed,
        **world.evaluate(policy),
        "greedy_accuracy": greedy["accuracy"],
        "greedy_length": greedy["length"],
        "seconds": round(time.monotonic() - started, 1),
        "history": history,
    }


def prepare(path: Path, settings: Settings) -> dict[str, Any]:
    """The policy before training: figures on held-out problems, at other temperatures (0 is greedy)
    and by majority too, which cost no training at all; and what rewards ask of the prompts."""
    if not path.exists() or "majority" not in json.loads(path.read_text()):
        CONSOLE.print("measuring the policy before training")
        world, policy = World(settings), policy_of()
        rows = [{"temperature": t, **world.evaluate(policy, temperature=t)} for t in TEMPERATURES]
        content = {
            "start": {k: v for k, v in rows[0].items() if k != "temperature"},
            "by_temperature": rows,
            "majority": {"votes": VOTES, **world.majority(policy, votes=VOTES)},
            "columns": world.references(policy),
        }
        write_json(path, content)
    return json.loads(path.read_text())


def show_rows(
    rows: Sequence[dict[str, Any]],
    start: dict[str, float],
    samplers: list[dict[str, float]],
    voted: dict[str, float],
) -> None:
    """The table on the screen, the most accurate first."""
    others = ", ".join(
        f"T {row['temperature']:g}: {100 * row['accuracy']:.1f} % at {row['length']:.1f}"
        for row in samplers[1:]
    )
    others += f", majority of {voted['votes']}: {100 * voted['accuracy']:.1f} %"
    reached_by_one = [n for n in SHARES if any(row[column(n)] is not None for row in rows)]
    wanted = [share for share in reached_by_one if round(100 * share) % 10 == 0]
    lines = []
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        spread = f" ± {100 * row['accuracy_std']:.1f}" if row["seeds"] > 1 else ""
        reached = [row[column(share)] for share in wanted]
        lines.append(
            [
                row["method"],
                "" if row["strength"] is None else f"{row['strength']:g}",
                f"{100 * row['accuracy']:.1f}{spread} %",
                f"{row['length']:.1f}",
                f"{row['tokens_per_correct']:.1f}",
                f"{100 * row['share_truncated']:.1f} %",
                f"{row['dominated_by']}",
                *("" if n is None else f"{n:.0f}" for n in reached),
            ]
        )
    show(
        f"before training: {100 * start['accuracy']:.1f} % at {start['length']:.0f} tokens "
        f"(T=1, as all rows); {others}",
        (
            *("method", "strength", "accuracy", "length", "per correct", "truncated", "dominated"),
            *(f"to {100 * share:.0f} %" for share in wanted),
        ),
        lines,
    )


def compare(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per method and strength: mean and standard deviation over seeds of every figure,
    mean updates to each of `SHARES` (None unless every seed got there), and `dominated_by`: how
    many rows of other methods are at least as accurate and as short, and better in one of both."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["level"]), []).append(run)
    rows = [_row(group) for group in groups.values()]
    for row in rows:
        row["dominated_by"] = sum(
            _dominates(other, row) for other in rows if other["method"] != row["method"]
        )
    return rows


def updates_to(history: Sequence[dict[str, float]], share: float) -> int | None:
    """First update (from 1) by which the last few are, together, at most `share` as long as the
    untrained policy on their prompts: batches of long and of short problems count alike."""
    for end in range(SMOOTHING, len(history) + 1):
        last = history[end - SMOOTHING : end]
        if sum(u["length"] for u in last) <= share * sum(u["reference_length"] for u in last):
            return end
    return None


def answer(rows: Sequence[dict[str, Any]], *, tolerance: float = 0.01) -> dict[str, Any]:
    """The bench's question, for every LenVM row: is there a published reward that does as well?

    reaches_alone   no published row is within `tolerance` of its accuracy at its length or below
    speed_up        updates of the best published reward / its own, to the smallest share of the
                    untrained length that both reach with accuracies within `tolerance`; the best
                    is the published row that is shortest among those at least as accurate; None
                    where there is none
    """
    published = [row for row in rows if row["family"] == "published"]
    return {
        f"{row['method']}@{row['strength']:g}": {
            "reaches_alone": not any(
                p["accuracy"] >= row["accuracy"] - tolerance and p["length"] <= row["length"]
                for p in published
            ),
            "speed_up": _speed_up(row, published, tolerance),
        }
        for row in rows
        if row["family"] == "lenvm"
    }


def column(share: float) -> str:
    """Name of the figure "updates to this share of the untrained length"."""
    return f"updates_to_{round(100 * share)}_percent"


def _speed_up(
    row: dict[str, Any], published: Sequence[dict[str, Any]], tolerance: float
) -> float | None:
    equal = [p for p in published if p["accuracy"] >= row["accuracy"] - tolerance]
    if not equal:
        return None
    best = min(equal, key=lambda p: p["length"])
    for share in reversed(SHARES):
        mine, theirs = row[column(share)], best[column(share)]
        if mine is not None and theirs is not None:
            return theirs / mine
    return None


def _row(group: Sequence[Run]) -> dict[str, Any]:
    first = group[0]
    row: dict[str, Any] = {key: first[key] for key in ("method", "family", "level", "strength")}
    row["seeds"] = len(group)
    for name in FIGURES:
        # A run without a right answer has no tokens per right answer: infinitely many.
        known = [math.inf if run[name] is None else run[name] for run in group]
        values = torch.tensor(known, dtype=torch.float64)
        row[name] = values.mean().item()
        row[f"{name}_std"] = values.std().item() if len(group) > 1 else math.nan
    for name in BESIDE:
        if all(run.get(name) is not None for run in group):  # not measured, or no hard problem
            row[name] = statistics.fmean(run[name] for run in group)
    for share in SHARES:
        reached = [updates_to(run["history"], share) for run in group]
        row[column(share)] = (
            None if None in reached else statistics.fmean(n for n in reached if n is not None)
        )
    last = [run["history"][-1] for run in group]
    row["value_rmse_last"] = statistics.fmean(step["value_rmse"] for step in last)
    row["value_bias_last"] = statistics.fmean(step["value_bias"] for step in last)
    return row


def _dominates(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return (
        a["accuracy"] >= b["accuracy"]
        and a["length"] <= b["length"]
        and (a["accuracy"] > b["accuracy"] or a["length"] < b["length"])
    )
