"""A LenVM trained from real text on a CPU, beside predictors that do not read.

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
text_comparison.py) was passed at every position of every data set.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.core import POSITIONS, gamma_from_lengths
from lenvm_rl.evals.result import Result
from lenvm_rl.model import (
    LengthValueModel,
    describe_policy,
    from_scratch,
    save_checkpoint,
)
from lenvm_rl.model.training import Recipe, train
from lenvm_rl.rollouts import RolloutReader
from scripts.bench import harness
from scripts.bench.harness import CONSOLE, show
from scripts.bench.plots import plot_positions
from scripts.bench.text_comparison import compare
from scripts.bench.text_sources import (
    GSM8K,
    MATH,
    STORIES,
    Source,
    completions_source,
    stories_source,
)

Experiment = tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]
"""Table rows, figures by data set, facts about training."""


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """What is read, and sizes."""

    data: Path | None = None
    """Folder of the GSM8K and MATH answers; left out without it."""
    stories_model: Path | None = None
    """Directory of the story model; left out without it."""
    story_texts: Path | None = None
    """Gzipped JSON list of stories, for their first words."""
    completions: int = 9_000
    """Answers to use."""
    epochs: float = 3.0
    """Passes over the answers."""
    hidden: int = 64
    """Width of the fresh trunk."""
    layers: int = 3
    """Layers of the fresh trunk."""
    vocab: int = 4096
    """Size of the BPE vocabulary."""
    story_prompts: int = 460
    """Different story beginnings."""
    samples: int = 4
    """Stories per beginning."""
    story_epochs: float = 4.0
    """Passes over the stories."""
    minutes: float = 5.0
    """Most minutes of training per model."""
    heldout: float = 0.2
    """Share of the prompts held out."""
    seed: int = 0
    """Of drawing, splitting, sampling and training."""
    out: Path = Path("runs/real_text")
    """Results."""
    work: Path | None = None
    """Where temporary rollout files go; the system's default otherwise."""
    quick: bool = False
    """Tiny sizes, half a minute, to see that everything runs."""

    def __post_init__(self) -> None:
        if not (self.data or self.stories_model):
            raise ValueError("nothing to do: give --data, --stories-model or both.")
        if self.stories_model and not self.story_texts:
            raise ValueError(
                "--stories-model needs --story-texts, whose first words are the prompts."
            )

    def sized(self) -> Options:
        """These, or with --quick tiny ones."""
        if not self.quick:
            return self
        sizes = {"completions": 60, "epochs": 1.0, "hidden": 64, "layers": 1, "vocab": 400}
        return replace(self, story_prompts=12, samples=2, story_epochs=1.0, **sizes)


def run(options: Options) -> dict[str, Any]:
    """Both experiments, the table and the figure."""
    options = options.sized()
    tables: list[dict[str, Any]] = []
    datasets: dict[str, Any] = {}
    training: dict[str, Any] = {}
    asked = {"completions": run_completions} if options.data else {}
    asked |= {"stories": run_stories} if options.stories_model else {}
    with tempfile.TemporaryDirectory(prefix="real_text_", dir=options.work) as folder:
        for name, experiment in asked.items():
            work = Path(folder) / name
            work.mkdir()
            table, figures, training[name] = experiment(options, work)
            tables += table
            datasets |= figures
    figures = {
        "beats_naive": all(entry["beats_naive_everywhere"] for entry in datasets.values()),
        "datasets": datasets,
        "training": training,
        "positions": tables,
        "settings": harness.settings(options),
    }
    Result("real_text", figures, {"positions": tables}).save(options.out)
    plot_positions(tables, options.out / "real_text.png")
    show_positions(tables, datasets)
    return figures


def run_completions(options: Options, work: Path) -> Experiment:
    """Experiment `completions`: table rows, figures by data set, facts about training."""
    CONSOLE.print("[bold]Answers to GSM8K and MATH[/bold]: converting and splitting")
    source = completions_source(
        options.data,
        work,
        completions=options.completions,
        vocab=options.vocab,
        heldout=options.heldout,
        seed=options.seed,
    )
    torch.manual_seed(options.seed)
    model = from_scratch(
        source.tokenizer,
        hidden_size=options.hidden,
        num_layers=options.layers,
        num_heads=max(1, options.hidden // 32),
        max_positions=longest(source),
        gamma=gamma_of(source),
        policy_name="44 models of ZeroEval on GSM8K, Qwen2.5-Math on MATH",
    )
    recipe = recipe_of(options, options.epochs)
    return judge(model, source, recipe, [GSM8K, MATH], options.out / "completions", "answers")


def run_stories(options: Options, work: Path) -> Experiment:
    """Experiment `stories`, as `run_completions`."""
    CONSOLE.print("[bold]Stories[/bold]: sampling")
    source = stories_source(
        options.stories_model,
        options.story_texts,
        options.out / "sampled-stories",
        work,
        prompts=options.story_prompts,
        samples=options.samples,
        heldout=options.heldout,
        seed=options.seed,
    )
    torch.manual_seed(options.seed)
    model = LengthValueModel.from_policy(
        options.stories_model,
        gamma=gamma_of(source),
        policy=describe_policy(options.stories_model.name, source.tokenizer),
    )
    recipe = recipe_of(options, options.story_epochs)
    return judge(model, source, recipe, [STORIES], options.out / "stories", "stories")


def recipe_of(options: Options, epochs: float) -> Recipe:
    """How both models are trained; one state in hundreds is at a prompt's end, hence its weight."""
    return Recipe(
        epochs=epochs,
        minutes=options.minutes,
        learning_rate=2e-3,
        boundary_weight=20.0,
        seed=options.seed,
    )


def judge(
    model: LengthValueModel,
    source: Source,
    recipe: Recipe,
    datasets: list[str],
    checkpoint: Path,
    label: str,
) -> Experiment:
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


def show_positions(tables: list[dict[str, Any]], datasets: dict[str, Any]) -> None:
    """Errors by position on the screen."""
    for name, figures in datasets.items():
        lines = []
        for predictor, r2 in figures["r2"].items():
            cells = [
                f"{row['u_rmse']:.3f} | {row['length_mre']:.2f}"
                for row in tables
                if row["dataset"] == name and row["predictor"] == predictor
            ]
            lines.append([predictor, *cells, f"{r2:.3f}"])
        columns = ("predictor", *(f"{position:.0%}" for position in POSITIONS), "R2")
        show(f"{name}: RMSE of u | MRE of the remaining length", columns, lines)
