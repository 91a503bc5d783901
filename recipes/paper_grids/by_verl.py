"""Runs of a grid by verl's trainer, for sizes that one process cannot do.

Each run is one command, a recipe of recipes/pretrain and overrides:

    OUT/verl/<trunk>-<seed>/        the untrained LenVM that runs of this trunk and seed start from
    OUT/verl/<cell>/checkpoint      verl's checkpoints: a killed run goes on from the newest
    OUT/verl/<cell>/train.log       what verl printed; its validations are the run's curve
    OUT/commands.sh                 the same commands, to be run elsewhere

A trained model is judged here on the same held-out rows as the plain loop's. Its curve holds what
verl's validation measures: mse (only of target `return`) and the relative errors.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lenvm_rl.demo.launch import TrainingFailed, recipes_dir, run_trainer
from lenvm_rl.model import LengthValueModel, load_tokenizer, save_checkpoint
from lenvm_rl.model.heldout import heldout_errors
from lenvm_rl.rollouts.atomic import replacing
from recipes.paper_grids.cell import Cell, build, fingerprint
from recipes.paper_grids.data import Data, heldout_rows
from scripts.bench.pool import RunsFailed

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""In verl's words."""
_POINT = re.compile(r"\bstep:(\d+) - (.*)")
_METRIC = re.compile(r"\bval/(mse|relative_error/\d\d):(?:np\.float64\()?([-+.\deE]+)")


@dataclass(frozen=True, kw_only=True)
class VerlLauncher:
    """A launcher of `grid.run_grid`, one run after the other."""

    out: Path
    """Result directory of the grid."""
    train: Callable[[Sequence[str], Path, int], None]
    """Runs verl with (overrides, log file, steps); raises `RunsFailed` when that fails."""
    extra: Sequence[str] = ()
    """Further overrides, for all runs."""

    def __call__(self, cell: Cell, data: Data) -> dict[str, Any]:
        name = fingerprint(cell, data.fingerprint)
        folder = self.out / "verl" / name
        lines = overrides(cell, data, self.out, extra=self.extra)
        trained = folder / "checkpoint" / f"global_step_{cell.steps}" / "lenvm"
        log = folder / "train.log"
        if not trained.is_dir():
            start_model(cell, data, self.out)
            # A run that was killed goes on: keep what its validations said so far.
            earlier = log.read_text(errors="replace") if log.exists() else ""
            try:
                self.train(lines, log, cell.steps)
            finally:
                if earlier and log.exists():
                    log.write_text(earlier + log.read_text(errors="replace"))
        return {"fingerprint": name, **judge(cell, data, trained, log)}


def verl_trainer(recipe: str) -> Callable[[Sequence[str], Path, int], None]:
    """Runs verl with a recipe of recipes/pretrain: see `VerlLauncher.train`.

    Raises:
        ValueError: no such recipe.
    """
    folder = recipes_dir() / "pretrain"
    if not (folder / f"{recipe}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ValueError(f"--recipe {recipe!r} is not in recipes/pretrain, which has {known}.")

    def train(lines: Sequence[str], log: Path, steps: int) -> None:
        try:
            run_trainer(
                lines,
                config_dir=folder,
                config_name=recipe,
                log_file=log,
                steps=steps,
                metric="critic/mse",
                console=Console(stderr=True, quiet=True),  # the grid has its own bar
                silent_after_s=3600.0,
            )
        except TrainingFailed as error:
            raise RunsFailed(str(error)) from error

    return train


def overrides(cell: Cell, data: Data, out: str | Path, *, extra: Sequence[str] = ()) -> list[str]:
    """Hydra overrides that make a recipe of recipes/pretrain this run.

    Args:
        out: result directory of the grid.
        extra: further overrides; they come last.
    Raises:
        ValueError: a weighting that verl's trainer does not have.
    """
    if cell.weighting != "token_mean":
        raise ValueError(
            f"weighting {cell.weighting!r} is not offered by the trainer, whose loss is the token "
            "mean: leave the part weighting out, or use the plain launcher."
        )
    out = Path(out).absolute()
    name = fingerprint(cell, data.fingerprint)
    rows = cell.prompts * cell.samples
    return [
        f"critic.model.path={_start(cell, out)}",
        f"lenvm.train_rollouts={data.subset(cell.prompts, cell.samples).absolute()}",
        f"lenvm.val_rollouts={data.heldout.absolute()}",
        f"lenvm.target={cell.target}",
        f"lenvm.gamma={cell.gamma}",
        f"lenvm.length_scale={cell.length_scale}",
        f"lenvm.grouped={str(cell.grouped).lower()}",
        "lenvm.boundary_weight=1.0",
        f"lenvm.seed={cell.seed}",
        f"data.train_batch_size={cell.batch_rows}",
        f"critic.optim.lr={cell.learning_rate}",
        f"critic.fsdp.mixed_precision.param_dtype={PRECISIONS[cell.precision]}",
        f"trainer.total_epochs={-(-cell.steps * cell.batch_rows // rows) + 1}",
        f"trainer.total_training_steps={cell.steps}",
        f"trainer.test_freq={cell.eval_every}",
        f"trainer.experiment_name=grid-{name}",
        f"trainer.default_local_dir={out / 'verl' / name / 'checkpoint'}",
        f"hydra.run.dir={out / 'verl' / name / 'hydra'}",
        *extra,
    ]


def write_commands(
    cells: Iterable[Cell], data: Data, out: str | Path, *, recipe: str, extra: Sequence[str] = ()
) -> tuple[Path, int]:
    """Write OUT/commands.sh, one line per different run, and the models that they start from.

    Returns:
        The file and the number of runs.
    """
    out = Path(out)
    different = list(dict.fromkeys(cells))
    lines = []
    for cell in different:
        start_model(cell, data, out)
        arguments = [recipe, *overrides(cell, data, out, extra=extra)]
        lines.append("recipes/pretrain/run.sh " + shlex.join(arguments))
    with replacing(out / "commands.sh") as file:
        file.write_text("\n".join(["#!/usr/bin/env bash", "set -euo pipefail", *lines]) + "\n")
    return out / "commands.sh", len(different)


def start_model(cell: Cell, data: Data, out: Path) -> Path:
    """The untrained LenVM that the run starts from; made when it is not there."""
    path = _start(cell, Path(out).absolute())
    if not path.exists():
        model = build(cell, data.tokenizer, max_positions=data.longest_sequence)
        # Runs of other targets and gammas share it: the overrides say which.
        model.config.gamma, model.config.target, model.config.length_scale = None, "return", None
        save_checkpoint(model, load_tokenizer(data.tokenizer), path)
    return path


def judge(cell: Cell, data: Data, trained: Path, log: Path) -> dict[str, Any]:
    """What `cell.run_cell` returns, of a model that verl has trained."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = LengthValueModel.from_pretrained(trained)
    model.to(device)
    rows = heldout_rows(data.heldout, samples=data.heldout_samples)
    final = {"step": cell.steps, **heldout_errors(model, rows)}
    curve = [p for p in read_curve(log, target=cell.target) if p["step"] < cell.steps]
    return {
        "cell": asdict(cell),
        "parameters": model.num_parameters(),
        "epochs": round(cell.steps * cell.batch_rows / (cell.prompts * cell.samples), 3),
        "seconds": 0.0,
        "tokens_per_s": None,
        "curve": [*curve, final],
        "final": final,
        "least_mse": min([p["mse"] for p in curve if "mse" in p] + [final["mse"]]),
    }


def read_curve(log: Path, *, target: str) -> list[dict[str, Any]]:
    """Validations in a log of verl's console, by step; the later of two of one step counts."""
    points: dict[int, dict[str, Any]] = {}
    for line in log.read_text(errors="replace").splitlines():
        if (found := _POINT.search(line)) is None:
            continue
        metrics = {key.replace("/", "_"): float(value) for key, value in _METRIC.findall(found[2])}
        if target != "return":
            metrics.pop("mse", None)  # in the space of the target, not of values
        if metrics:
            points[int(found[1])] = {"step": int(found[1]), **metrics}
    return [points[step] for step in sorted(points)]


def _start(cell: Cell, out: Path) -> Path:
    slug = re.sub(r"[^\w.-]+", "_", cell.trunk).strip("_")
    return out / "verl" / f"start-{slug}-{cell.seed}"
