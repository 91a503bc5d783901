"""The command line of the grids: `python -m recipes.paper_grids scaling | ablation --help`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from lenvm_rl.cli.options import Mistake, parse
from lenvm_rl.cli.table import Command
from lenvm_rl.demo.prompts import resolve_policy
from lenvm_rl.evals.result import Result
from lenvm_rl.rollouts.atomic import write_json
from recipes.paper_grids.ablation import AblationSettings, ablation_grid, ablation_report
from recipes.paper_grids.by_verl import VerlLauncher, verl_trainer, write_commands
from recipes.paper_grids.cell import run_cell
from recipes.paper_grids.data import Data, prepare_data
from recipes.paper_grids.draw import draw, view
from recipes.paper_grids.grid import Variant, run_grid
from recipes.paper_grids.scaling import ScalingSettings, scaling_grid, scaling_report
from scripts.bench.pool import RunsFailed

CONSOLE = Console()


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """Size of every run, what it is judged on, and how the runs are done."""

    steps: int = 600
    """Optimiser steps of every run."""
    batch_rows: int = 16
    """Completions per step."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    evaluations: int = 10
    """Evaluations per run, evenly over its steps."""
    heldout: Path | None = None
    """Rollout file to judge on (default: split off by prompt)."""
    heldout_prompts: int = 200
    """Number of prompts to split off."""
    heldout_samples: int = 2
    """Completions of each held-out prompt that are judged on."""
    jobs: int = 1
    """Processes at once, of one thread each."""
    launcher: Literal["plain", "verl"] = "plain"
    """plain: one process per run on CPUs. verl: the trainer, on GPUs."""
    recipe: str = "demo"
    """verl: a recipe of recipes/pretrain."""
    override: list[str] = field(default_factory=list)
    """verl: a Hydra override for all runs; repeatable."""
    dry_run: bool = False
    """verl: write OUT/commands.sh and stop."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {self.jobs}.")
        if self.launcher == "plain" and (self.dry_run or self.override):
            raise ValueError("--dry-run and --override belong to --launcher verl.")

    def base(self) -> dict[str, Any]:
        """What all runs share, as fields of `Cell`."""
        names = ("steps", "batch_rows", "learning_rate", "evaluations")
        return {name: getattr(self, name) for name in names}


def scaling(
    rollouts: Path,
    out: Path,
    *,
    policy: str = "demo",
    settings: ScalingSettings = ScalingSettings(),  # noqa: B008  (frozen)
    grid: GridSettings = GridSettings(),  # noqa: B008
) -> dict[str, Any]:
    """Train a grid of sizes and draw the paper's figure 3; a killed grid goes on.

    Example: `python -m recipes.paper_grids scaling --rollouts runs/demo/rollouts/sampled
    --out runs/grid --jobs 2`

    Args:
        rollouts: Rollout file, several completions of each prompt.
        out: Directory to write to.
    """
    data = _data(rollouts, out, policy, grid)
    variants = scaling_grid(data, settings, grid.base(), resolve=_trunk)
    return _done(variants, data, out, grid, scaling_report)


def ablation(
    rollouts: Path,
    out: Path,
    *,
    policy: str = "demo",
    settings: AblationSettings = AblationSettings(),  # noqa: B008
    grid: GridSettings = GridSettings(),  # noqa: B008
) -> dict[str, Any]:
    """Train the method and its ablations and draw the paper's figures 5 and 6.

    Example: `python -m recipes.paper_grids ablation --rollouts runs/demo/rollouts/sampled
    --out runs/grid --jobs 2`

    Args:
        rollouts: Rollout file, several completions of each prompt.
        out: Directory to write to.
    """
    data = _data(rollouts, out, policy, grid)
    variants = ablation_grid(data, settings, grid.base(), resolve=_trunk)
    return _done(variants, data, out, grid, ablation_report)


GRIDS = {"scaling": scaling, "ablation": ablation}


def _data(rollouts: Path, out: Path, policy: str, grid: GridSettings) -> Data:
    return prepare_data(
        rollouts,
        out,
        policy=policy,
        heldout=grid.heldout,
        heldout_prompts=grid.heldout_prompts,
        heldout_samples=grid.heldout_samples,
    )


def _trunk(name: str) -> str:
    """`demo` and `demo@K` are the demo policy's trunk; other names stand as they are."""
    model, at, blocks = name.partition("@")
    return resolve_policy(model) + at + blocks


def _done(
    variants: Sequence[Variant], data: Data, out: Path, grid: GridSettings, report: Any
) -> dict[str, Any]:
    """Figures of the finished grid; of a dry run, where its commands are."""
    cells = [variant.cell for variant in variants]
    if grid.launcher == "verl":
        train = verl_trainer(grid.recipe)
        file, count = write_commands(cells, data, out, recipe=grid.recipe, extra=grid.override)
        CONSOLE.print(f"{count} runs, one command each: {file}", highlight=False)
        if grid.dry_run:
            return {"runs": count, "commands": str(file)}
        launcher = VerlLauncher(out=out, train=train, extra=grid.override)
        results = run_grid(cells, data, out, jobs=0, launcher=launcher)
    else:
        results = run_grid(cells, data, out, jobs=grid.jobs, launcher=run_cell)
    facts = {
        "data": data.fingerprint,
        "gamma": data.gamma,
        "length_p99": data.p99,
        "longest_response": data.longest_response,
        "share_truncated": data.share_truncated,
        **grid.base(),
    }
    result: Result = report(variants, results, facts)
    result.save(out)
    pictures = draw(result, out)
    CONSOLE.print(view(result))
    CONSOLE.print("figures: " + ", ".join(map(str, pictures)))
    return result.to_dict()


def main(argv: Sequence[str] | None = None) -> None:
    """Run one grid; the last line of stdout is one JSON object."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    prog = "python -m recipes.paper_grids"
    if name not in GRIDS:
        print(f"usage: {prog} {{{','.join(GRIDS)}}} --help")
        sys.exit(0 if name in ("-h", "--help") else 2)
    try:
        arguments, json_file = parse(GRIDS[name], words, f"{prog} {name}", Command("", ""))
        figures = GRIDS[name](**arguments)
    except (Mistake, ValueError, FileNotFoundError, FileExistsError, RunsFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RunsFailed) else 2)
    if json_file is not None:
        write_json(json_file, figures)
    print(json.dumps(figures, allow_nan=False))


if __name__ == "__main__":
    main()
