"""Does a LenVM that is trained from real text on a CPU beat predictors that do not read?

    python -m scripts.bench real_text --data DATA/completions \
        --stories-model DATA/stories260k --story-texts DATA/prompts/tinystories_1000.json.gz

Two experiments, each split by prompt, each judged on held-out prompts at 0/25/50/75/90 % of the
response against the training mean and a linear fit on prompt length (and, for information, the
mean residual life at t tokens):

  completions   answers of large models to GSM8K (44 models, one answer each, so the "policy" is
                a mixture that the prompt does not name) and MATH (one model, 8 samples each). A
                small trunk and a BPE vocabulary are trained from scratch.
  stories       stories that a 260k-parameter language model writes itself, sampled here; the
                LenVM starts from its trunk. Stories cut by the context are left out of training
                and judging (`drop`); their share is reported.

Writes real_text.json, real_text.jsonl, real_text_positions.csv, real_text.png, the checkpoints and
the sampled stories to --out; called again, it samples only what is missing there. The last line of
stdout is one JSON object; `beats_naive` says whether the bar (RMSE of the horizon, see
scripts/bench/text/comparison.py) was passed at every position of every data set.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lenvm_rl.core import POSITIONS, gamma_from_lengths
from lenvm_rl.evals.result import finite, save_results
from lenvm_rl.model import (
    LengthValueModel,
    describe_policy,
    from_scratch,
    save_checkpoint,
)
from lenvm_rl.model.training import Recipe, train
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.rollouts.atomic import replacing
from scripts.bench.text.comparison import compare
from scripts.bench.text.figure import plot_positions
from scripts.bench.text.sources import (
    GSM8K,
    MATH,
    STORIES,
    Source,
    completions_source,
    stories_source,
)

CONSOLE = Console(stderr=True)
QUICK = {
    "completions": 60,
    "epochs": 1.0,
    "story_prompts": 12,
    "samples": 2,
    "story_epochs": 1.0,
    "hidden": 64,
    "layers": 1,
    "vocab": 400,
}
"""What --quick makes of the sizes: half a minute, to see that everything runs."""


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    started = time.monotonic()
    tables: list[dict[str, Any]] = []
    datasets: dict[str, Any] = {}
    training: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="real_text_", dir=args.work) as folder:
        for name, run in (("completions", run_completions), ("stories", run_stories)):
            if not getattr(args, "data" if name == "completions" else "stories_model"):
                continue
            work = Path(folder) / name
            work.mkdir()
            table, figures, training[name] = run(args, work)
            tables += table
            datasets |= figures
    figures = {
        "bench": "real_text",
        "beats_naive": all(entry["beats_naive_everywhere"] for entry in datasets.values()),
        "run_s": round(time.monotonic() - started, 1),
        "datasets": datasets,
        "training": training,
        "positions": tables,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "threads": torch.get_num_threads(),
    }
    save_results(args.out, "real_text", figures, {"positions": tables})
    plot_positions(tables, args.out / "real_text.png")
    show(tables, datasets)
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
    add("--data", type=Path, help="folder of the GSM8K and MATH answers; left out without it")
    add("--stories-model", type=Path, help="directory of the story model; left out without it")
    add("--story-texts", type=Path, help="gzipped JSON list of stories, for their first words")
    add("--completions", type=int, default=9_000, help="answers to use (9000)")
    add("--epochs", type=float, default=3.0, help="passes over the answers (3)")
    add("--hidden", type=int, default=64, help="width of the fresh trunk (64)")
    add("--layers", type=int, default=3, help="layers of the fresh trunk (3)")
    add("--vocab", type=int, default=4096, help="size of the BPE vocabulary (4096)")
    add("--story-prompts", type=int, default=460, help="different story beginnings (460)")
    add("--samples", type=int, default=4, help="stories per beginning (4)")
    add("--story-epochs", type=float, default=4.0, help="passes over the stories (4)")
    add("--minutes", type=float, default=5.0, help="most minutes of training per model (5)")
    add("--heldout", type=float, default=0.2, help="share of the prompts held out (0.2)")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/real_text"), help="results (runs/real_text)")
    add("--work", type=Path, help="where temporary rollout files go (the system's default)")
    add("--json", type=Path, help="write the last line to this file too")
    add("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(QUICK)
    if not (args.data or args.stories_model):
        parser.error("nothing to do: give --data, --stories-model or both.")
    if args.stories_model and not args.story_texts:
        parser.error("--stories-model needs --story-texts, whose first words are the prompts.")
    return args


def run_completions(args: argparse.Namespace, work: Path) -> tuple[list, dict, dict]:
    """Experiment `completions`: table rows, figures by data set, facts about training."""
    CONSOLE.print("[bold]Answers to GSM8K and MATH[/bold]: converting and splitting")
    source = completions_source(
        args.data,
        work,
        completions=args.completions,
        vocab=args.vocab,
        heldout=args.heldout,
        seed=args.seed,
    )
    torch.manual_seed(args.seed)
    model = from_scratch(
        source.tokenizer,
        hidden_size=args.hidden,
        num_layers=args.layers,
        num_heads=max(1, args.hidden // 32),
        max_positions=longest(source),
        gamma=gamma_of(source),
        policy_name="44 models of ZeroEval on GSM8K, Qwen2.5-Math on MATH",
    )
    recipe = recipe_of(args, args.epochs)
    return judge(model, source, recipe, [GSM8K, MATH], args.out / "completions", "answers")


def run_stories(args: argparse.Namespace, work: Path) -> tuple[list, dict, dict]:
    """Experiment `stories`, as `run_completions`."""
    CONSOLE.print("[bold]Stories[/bold]: sampling")
    source = stories_source(
        args.stories_model,
        args.story_texts,
        args.out / "sampled-stories",
        work,
        prompts=args.story_prompts,
        samples=args.samples,
        heldout=args.heldout,
        seed=args.seed,
    )
    torch.manual_seed(args.seed)
    model = LengthValueModel.from_policy(
        args.stories_model,
        gamma=gamma_of(source),
        policy=describe_policy(args.stories_model.name, source.tokenizer),
    )
    recipe = recipe_of(args, args.story_epochs)
    return judge(model, source, recipe, [STORIES], args.out / "stories", "stories")


def recipe_of(args: argparse.Namespace, epochs: float) -> Recipe:
    """How both models are trained; one state in hundreds is at a prompt's end, hence its weight."""
    return Recipe(
        epochs=epochs,
        minutes=args.minutes,
        learning_rate=2e-3,
        boundary_weight=20.0,
        seed=args.seed,
    )


def judge(
    model: LengthValueModel,
    source: Source,
    recipe: Recipe,
    datasets: list[str],
    checkpoint: Path,
    label: str,
) -> tuple[list, dict, dict]:
    """Train, save, and compare on every data set of the source."""
    training = train(model, source.train, recipe, label=label)
    save_checkpoint(model, source.tokenizer, checkpoint)
    table, figures = [], {}
    for name in datasets:
        rows, measured = compare(model, source.train, source.heldout, name)
        table += rows
        figures[name] = {**measured, "source": source.facts[name]}
    return table, figures, training


def gamma_of(source: Source) -> float:
    """Discount whose horizon of the 99th percentile of the training lengths is 0.99."""
    return gamma_from_lengths(torch.from_numpy(RolloutReader(source.train).lengths()))


def longest(source: Source) -> int:
    """Tokens of the longest prompt plus response."""
    columns = ["prompt_ids", "response_ids"]
    return max(
        len(row["prompt_ids"]) + len(row["response_ids"])
        for path in (source.train, source.heldout)
        for row in RolloutReader(path).iter_rows(columns)
    )


def show(tables: list[dict[str, Any]], datasets: dict[str, Any]) -> None:
    """Errors by position on the screen."""
    for name, figures in datasets.items():
        view = Table(title=f"{name}: RMSE of u | MRE of the remaining length", title_justify="left")
        view.add_column("predictor")
        for position in POSITIONS:
            view.add_column(f"{position:.0%}", justify="right")
        view.add_column("R2", justify="right")
        for predictor, r2 in figures["r2"].items():
            cells = [
                f"{row['u_rmse']:.3f} | {row['length_mre']:.2f}"
                for row in tables
                if row["dataset"] == name and row["predictor"] == predictor
            ]
            view.add_row(predictor, *cells, f"{r2:.3f}")
        CONSOLE.print(view)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{error}")
