"""Trained once with random budgets, evaluated at four: how well does a policy meet each of them?

    python -m scripts.bench budgets --out runs/bench_budgets --jobs 2
    python -m scripts.bench budgets --lenvm DIR --methods l1_exact,lenvm --seeds 2 --updates 20

The shipped policy under GRPO; every prompt names a budget of tokens. LenVM's dense budget term
beside L1-Exact: same start, data, updates, batch and seeds (`grpo/budgets.py` says what they are).
Each run is one process with one thread; a run that is finished is not run again, so a bench
that was killed goes on.

Writes budgets.json, budgets.jsonl, budgets_rows.csv and budgets.png to --out, one JSON per run and
the start (policy and LenVM, the same for other --alpha and --scale) to --out/runs. The last line of
stdout is one JSON object.
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
from scripts.bench.grpo.budget_report import budget_rows, plot_budgets
from scripts.bench.grpo.budgets import METHODS, UNTRAINED, WARM_UP, BudgetSettings, run
from scripts.bench.grpo.jobs import digest, one_thread, run_missing
from scripts.bench.grpo.warm_up import warm_up

CONSOLE = Console(stderr=True)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    settings = BudgetSettings(lenvm=str(args.lenvm.resolve()))
    settings = replace(settings, **{k: v for k, v in args.sizes.items() if v is not None})
    folder = args.out / "runs" / digest(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "settings.json") as file:
        file.write_text(json.dumps(asdict(settings), indent=2) + "\n")
    CONSOLE.print("the start of all methods: policy and LenVM on hindsight budgets")
    one_thread()
    start = warm_up(
        settings,
        args.out / "runs" / f"start-{digest(settings, only=WARM_UP)}",
        problems=settings.warm_problems,
        epochs=settings.warm_epochs,
        learning_rate=settings.warm_rate,
    )
    trained = [(m, s) for s in range(args.seeds) for m in args.methods]
    todo = [(m, 0) for m in UNTRAINED] + trained
    files = {folder / f"{m}-{s}.json": (m, s, settings, start) for m, s in todo}
    run_missing(run, files, jobs=args.jobs)
    runs = [json.loads(path.read_text()) for path in files]
    rows = budget_rows(runs)
    figures = {
        "bench": "budgets",
        "runs": len(runs),
        "run_minutes": sum(r["seconds"] for r in runs) / 60,
        "rows": rows,
        "settings": {**asdict(settings), "seeds": args.seeds},
    }
    save_results(args.out, "budgets", figures, {"rows": rows})
    plot_budgets(rows, args.out / "budgets.png")
    show(rows)
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
    add("--methods", default="l1_exact,lenvm,lenvm_correct", help=f"some of {','.join(METHODS)}")
    add("--seeds", type=int, default=3, help="runs per method (3)")
    add("--updates", type=int, help="updates per run (40)")
    add("--prompts", type=int, help="prompts per update (16)")
    add("--samples", type=int, help="completions per prompt (8)")
    add("--learning-rate", type=float, help="of the policy (1e-4)")
    add("--alpha", type=float, help="L1-Exact: reward per token of deviation (0.003)")
    add("--scale", type=float, help="LenVM: weight of the dense term (0.3)")
    add("--max-tokens", type=int, help="longest response (256)")
    add("--pool", type=int, help="different training prompts (1024)")
    add("--eval-prompts", type=int, help="held-out problems, each at every budget (48)")
    add("--eval-samples", type=int, help="completions of each (4)")
    add("--warm-problems", type=int, help="problems of the warm-up (1536)")
    add("--warm-epochs", type=int, help="passes over their right answers (4)")
    add("--jobs", type=int, default=1, help="runs at a time (1)")
    add("--out", type=Path, default=Path("runs/bench_budgets"), help="results")
    add("--json", type=Path, help="write the last line to this file too")
    args = parser.parse_args(argv)
    args.methods = args.methods.split(",")
    unknown = sorted(set(args.methods) - set(METHODS))
    if unknown:
        parser.error(f"--methods {','.join(unknown)}: use some of {','.join(METHODS)}.")
    if not args.lenvm.is_dir():
        parser.error(f"--lenvm {args.lenvm} is no directory: make one with `lenvm demo`.")
    names = (
        "updates prompts samples learning_rate alpha scale max_tokens pool eval_prompts "
        "eval_samples warm_problems warm_epochs"
    )
    args.sizes = {name: getattr(args, name) for name in names.split()}
    return args


def show(rows: list[dict[str, Any]]) -> None:
    """The table on the screen."""
    view = Table(title="trained once, asked for several budgets", title_justify="left")
    for name in ("method", "budget", "length", "deviation", "bias", "accuracy", "truncated"):
        view.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        spread = row["deviation_std"]
        view.add_row(
            row["method"],
            str(row["budget"]),
            f"{row['length']:.1f}",
            f"{100 * row['deviation']:.1f}" + (f" ± {100 * spread:.1f} %" if spread else " %"),
            f"{100 * row['bias']:+.1f} %",
            f"{100 * row['accuracy']:.1f} %",
            f"{100 * row['share_truncated']:.1f} %",
        )
    CONSOLE.print(view)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{error}")
