"""Shortest predicted first on real lengths: how far from first come to perfect knowledge?

    python -m scripts.bench scheduling --data DATA/completions --out runs/scheduling

Answers of large models to GSM8K and MATH problems are split by prompt; a small LenVM is trained on
one side as in real_text.py (minutes, once: it is kept in --out); the answers of the other
side are the requests of a simulated server (`lenvm_rl.evals.scheduling`). Orders by the LenVM stand
beside first come first served, naive predictors and perfect knowledge, at several loads and over
several seeds. The answers come from 45 models whose name is not in the prompt: like a server whose
traffic is mixed, and harder than one policy's own.

With --lenvm and --rollouts (and --train for the naive predictors) another LenVM and its completions
take their place, as in `lenvm eval scheduling`. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

from lenvm_rl.evals.scheduling.draw import view
from lenvm_rl.evals.scheduling.evaluate import LOADS, Settings, run
from lenvm_rl.evals.scheduling.queueing import Server
from lenvm_rl.rollouts.atomic import replacing
from scripts.bench import real_text as bench_real_text

CONSOLE = Console(stderr=True)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    started = time.monotonic()
    lenvm, train, requests = args.lenvm, args.train, args.rollouts
    if args.data:
        lenvm, train, requests = trained_on(args)
    report = run(
        lenvm,
        requests,
        args.out,
        train=train,
        settings=Settings(
            loads=args.loads,
            requests=args.requests,
            seeds=args.seeds,
            preempt_until=args.preempt_until,
            server=Server(slots=args.slots, resume_steps=args.resume_steps),
            seed=args.seed,
        ),
        progress=True,
    )
    CONSOLE.print(view(report))
    figures = {
        "bench": "scheduling",
        "run_s": round(time.monotonic() - started, 1),
        **report.to_dict(),
    }
    line = json.dumps(figures, allow_nan=False)
    if args.json:
        with replacing(args.json) as file:
            file.write_text(line + "\n")
    print(line)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder of the GSM8K and MATH answers")
    add("--completions", type=int, default=9_000, help="answers to use (9000)")
    add("--minutes", type=float, default=6.0, help="most minutes of training (6)")
    add("--lenvm", type=Path, help="in place of --data: directory of a LenVM")
    add("--rollouts", type=Path, help="in place of --data: completions it was not trained on")
    add("--train", type=Path, help="with --lenvm: what it was trained on, for naive predictors")
    add("--loads", type=float, nargs="+", default=list(LOADS), help=f"loads {LOADS}")
    add("--requests", type=int, default=1000, help="requests per simulation (1000)")
    add("--seeds", type=int, default=5, help="draws of requests and arrivals (5)")
    add("--slots", type=int, default=16, help="requests that run at a time (16)")
    add("--resume-steps", type=int, default=0, help="steps lost by being put back (0)")
    add("--preempt-until", type=float, default=0.8, help="share of the prediction (0.8)")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/scheduling"), help="results (runs/scheduling)")
    add("--json", type=Path, help="write the last line to this file too")
    add("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    args = parser.parse_args(argv)
    if bool(args.data) == bool(args.lenvm and args.rollouts):
        parser.error("give either --data, or --lenvm and --rollouts.")
    if args.quick:
        args.requests, args.seeds, args.loads = 60, 2, [1.1]
    return args


def trained_on(args: argparse.Namespace) -> tuple[Path, Path, Path]:
    """LenVM, training and held-out rollouts of the answers in --data; made once per --out."""
    lenvm, rollouts = args.out / "completions", args.out / "rollouts"
    if not rollouts.exists():
        words = ["--data", str(args.data), "--out", str(args.out), "--seed", str(args.seed)]
        words += ["--completions", str(args.completions), "--minutes", str(args.minutes)]
        work = args.out / "rollouts.tmp"
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir(parents=True)
        settings = bench_real_text.parse_args([*words, "--quick"] if args.quick else words)
        bench_real_text.run_completions(settings, work)
        os.replace(work, rollouts)  # last: says that the LenVM is there too
    return lenvm, rollouts / "train", rollouts / "heldout"


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{error}")
