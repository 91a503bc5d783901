"""Which length term gets a policy short without losing answers? LenVM against published rewards.

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

Writes rl.json, rl.jsonl, rl_methods.csv, pareto.png, curves.png and staleness.png to --out, one
JSON per run to --out/runs. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lenvm_rl.demo import lenvm_path
from lenvm_rl.evals.result import finite, save_results
from lenvm_rl.rollouts.atomic import replacing
from scripts.bench.grpo.comparison import SHARES, answer, column, compare
from scripts.bench.grpo.figures import plot_curves, plot_pareto, plot_staleness
from scripts.bench.grpo.jobs import digest, run_missing
from scripts.bench.grpo.methods import Method, all_methods
from scripts.bench.grpo.training import Settings, by_temperature, references, run, start_figures

CONSOLE = Console(stderr=True)
REDUCED = {"updates": 16, "eval_prompts": 64}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    settings = Settings(lenvm=str(args.lenvm.resolve()))
    settings = replace(settings, **{k: v for k, v in args.sizes.items() if v is not None})
    methods = all_methods(args.methods, args.levels)
    todo = [(m, s) for s in range(args.seeds) for m in methods]
    folder = args.out / "runs" / digest(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "settings.json") as file:
        file.write_text(json.dumps(asdict(settings), indent=2) + "\n")
    prepared = prepare(folder / "before.json", settings)
    files = {_path(folder, m, s): (m, s, settings, prepared["columns"]) for m, s in todo}
    run_missing(run, files, jobs=args.jobs)
    runs = [json.loads(_path(folder, m, s).read_text()) for m, s in todo]
    rows = compare(runs)
    figures = {
        "bench": "rl",
        "runs": len(runs),
        "run_hours": sum(r["seconds"] for r in runs) / 3600,
        "before": prepared["start"],
        "before_by_temperature": prepared["by_temperature"],
        "answer": answer(rows),
        "methods": rows,
        "settings": {**asdict(settings), "seeds": args.seeds, "levels": args.levels},
    }
    save_results(args.out, "rl", figures, {"methods": rows})
    start = prepared["start"]
    plot_pareto(rows, (start["length"], start["accuracy"]), args.out / "pareto.png")
    plot_curves(runs, args.out / "curves.png")
    plot_staleness(runs, args.out / "staleness.png")
    show(rows, start, prepared["by_temperature"])
    line = json.dumps(finite(figures), allow_nan=False)
    if args.json:
        with replacing(args.json) as file:
            file.write_text(line + "\n")
    print(line)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--lenvm", type=Path, default=lenvm_path(), help="of the shipped policy (the shipped one)")
    add("--methods", help="comma-separated; `all`, or some of grpo/methods.py")
    add("--levels", default="0,1,2", help="strengths: 0 weak, 1 middle, 2 strong; 3 beyond (0,1,2)")
    add("--seeds", type=int, default=3, help="runs per method and strength (3)")
    add("--updates", type=int, help="updates per run (24)")
    add("--prompts", type=int, help="prompts per update (16)")
    add("--samples", type=int, help="completions per prompt (8)")
    add("--learning-rate", type=float, help="of the policy (1e-4)")
    add("--lam", type=float, help="lambda of the dense advantages (0.95)")
    add("--max-tokens", type=int, help="longest response (256)")
    add("--pool", type=int, help="different training prompts (256)")
    add("--eval-prompts", type=int, help="held-out problems (128)")
    add("--eval-samples", type=int, help="completions of each (8)")
    add("--jobs", type=int, default=2, help="runs at a time (2)")
    add("--reduced", action="store_true", help="one seed, the middle strength, 16 updates")
    add("--out", type=Path, default=Path("runs/bench_rl"), help="results (runs/bench_rl)")
    add("--json", type=Path, help="write the last line to this file too")
    args = parser.parse_args(argv)
    if args.reduced:
        args.levels, args.seeds = "1", 1
        for name, value in REDUCED.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    args.methods = args.methods.split(",") if args.methods else None
    args.levels = sorted({int(level) for level in args.levels.split(",")})
    if not set(args.levels) <= {0, 1, 2, 3}:
        parser.error(f"--levels {args.levels}: use some of 0, 1, 2, 3.")
    if not args.lenvm.is_dir():
        parser.error(f"--lenvm {args.lenvm} is no directory: make one with `lenvm demo`.")
    names = "updates prompts samples learning_rate lam max_tokens pool eval_prompts eval_samples"
    args.sizes = {name: getattr(args, name) for name in names.split()}
    return args


def prepare(path: Path, settings: Settings) -> dict[str, Any]:
    """The policy before training: figures on held-out problems, references of the pool."""
    if not path.exists() or "by_temperature" not in json.loads(path.read_text()):
        CONSOLE.print("measuring the policy before training")
        content = {
            "start": start_figures(settings),
            "by_temperature": by_temperature(settings),
            "columns": references(settings),
        }
        with replacing(path) as file:
            file.write_text(json.dumps(content) + "\n")
    return json.loads(path.read_text())


def _path(folder: Path, method: Method, seed: int) -> Path:
    # By the strength, not its level: other strengths under the same level are other runs.
    strength = "" if method.strength is None else f"-{method.strength:g}"
    return folder / f"{method.name}{strength}-{seed}.json"


def show(
    rows: list[dict[str, Any]], start: dict[str, float], samplers: list[dict[str, float]]
) -> None:
    """The table on the screen, the most accurate first."""
    others = ", ".join(
        f"T {row['temperature']:g}: {100 * row['accuracy']:.1f} % at {row['length']:.1f}"
        for row in samplers[1:]
    )
    view = Table(
        title=f"before training: {100 * start['accuracy']:.1f} % at {start['length']:.0f} tokens "
        f"(T=1, as all rows); {others}",
        title_justify="left",
    )
    view.add_column("method")
    reached_by_one = [n for n in SHARES if any(row[column(n)] is not None for row in rows)]
    wanted = [share for share in reached_by_one if round(100 * share) % 10 == 0]
    for name in ("strength", "accuracy", "length", "per right", "truncated", "dominated"):
        view.add_column(name, justify="right")
    for share in wanted:
        view.add_column(f"to {100 * share:.0f} %", justify="right")
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        spread = f" ± {100 * row['accuracy_std']:.1f}" if row["seeds"] > 1 else ""
        per_right = row["tokens_per_correct"]
        reached = [row[column(share)] for share in wanted]
        view.add_row(
            row["method"],
            "" if row["strength"] is None else f"{row['strength']:g}",
            f"{100 * row['accuracy']:.1f}{spread} %",
            f"{row['length']:.1f}",
            f"{per_right:.1f}",
            f"{100 * row['share_truncated']:.1f} %",
            f"{row['dominated_by']}",
            *("" if n is None else f"{n:.0f}" for n in reached),
        )
    CONSOLE.print(view)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{error}")
