"""`lenvm eval scaling | ablation`: grids of pretraining runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from lenvm_rl.cli.app import JsonOption, OutOption, console, emit, evals_app

RolloutsOption = Annotated[Path, typer.Option(help="Completions, several of each prompt.")]
PolicyOption = Annotated[str, typer.Option(help="Policy that wrote them (or `demo`).")]
HeldoutOption = Annotated[
    Path | None, typer.Option(help="Rollouts to judge on (else split off by prompt).")
]
HeldoutPromptsOption = Annotated[int, typer.Option(help="Prompts to split off.", min=1)]
HeldoutSamplesOption = Annotated[
    int, typer.Option(help="Completions of each held-out prompt that are judged on.", min=1)
]
TrunkOption = Annotated[str, typer.Option(help="Trunk on which all else varies.")]
SeedsOption = Annotated[int, typer.Option(help="Runs of each kind.", min=1)]
StepsOption = Annotated[int, typer.Option(help="Optimiser steps of every run.", min=1)]
BatchOption = Annotated[int, typer.Option(help="Completions per step.", min=1)]
RateOption = Annotated[float, typer.Option(help="Peak learning rate.")]
EvaluationsOption = Annotated[int, typer.Option(help="Points of a curve.", min=1)]
JobsOption = Annotated[int, typer.Option(help="Processes at once, one thread each.", min=1)]
LauncherOption = Annotated[
    str, typer.Option(help="plain: one process per run on CPUs. verl: the trainer, on GPUs.")
]
RecipeOption = Annotated[str, typer.Option(help="verl: a recipe of recipes/pretrain.")]
OverrideOption = Annotated[
    list[str] | None, typer.Option("--override", help="verl: a Hydra override for all runs.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="verl: write OUT/commands.sh and stop.")
]


@evals_app.command("scaling")
def eval_scaling(
    rollouts: RolloutsOption,
    out: OutOption,
    policy: PolicyOption = "demo",
    trunks: Annotated[
        str,
        typer.Option(
            help="Small to large: LAYERSxWIDTH (fresh), a causal LM, or its first blocks LM@K."
        ),
    ] = "1x32,2x64,3x96,4x128",
    trunk: TrunkOption = "2x64",
    prompts: Annotated[str, typer.Option(help="Numbers of prompts.")] = "100,400,1600",
    samples: Annotated[str, typer.Option(help="Samples per prompt.")] = "1,2,4",
    seeds: SeedsOption = 2,
    steps: StepsOption = 600,
    batch_rows: BatchOption = 16,
    learning_rate: RateOption = 3e-3,
    evaluations: EvaluationsOption = 10,
    heldout: HeldoutOption = None,
    heldout_prompts: HeldoutPromptsOption = 200,
    heldout_samples: HeldoutSamplesOption = 2,
    jobs: JobsOption = 1,
    launcher: LauncherOption = "plain",
    recipe: RecipeOption = "demo",
    override: OverrideOption = None,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
) -> None:
    """Train a grid of sizes and draw the paper's figure 3; a killed grid goes on.

    Example: `lenvm eval scaling --rollouts runs/demo/rollouts/sampled --out runs/grid --jobs 2`

    On GPUs: `lenvm eval scaling --rollouts data/qwen2.5-7b --policy Qwen/Qwen2.5-7B-Instruct
    --trunks Qwen/Qwen2.5-0.5B-Instruct,Qwen/Qwen2.5-1.5B-Instruct
    --trunk Qwen/Qwen2.5-1.5B-Instruct --prompts 10000,30000,100000 --samples 1,2,4,16
    --steps 2350 --batch-rows 1024 --learning-rate 2e-5 --heldout-prompts 8000
    --heldout-samples 1 --seeds 1 --launcher verl --recipe qwen2.5-7b-from-1.5b --out runs/scaling`
    """
    from lenvm_rl.evals.grids.scaling import ScalingSettings, scaling_grid, scaling_report

    settings = ScalingSettings(
        trunks=trunks.split(","),
        trunk=trunk,
        prompts=_counts("--prompts", prompts),
        samples=_counts("--samples", samples),
        seeds=seeds,
    )
    base = _base(steps, batch_rows, learning_rate, evaluations)
    data = _data(rollouts, out, policy, heldout, heldout_prompts, heldout_samples)
    variants = scaling_grid(data, settings, base, resolve=_trunk)
    how = {"launcher": launcher, "recipe": recipe, "extra": override or (), "dry_run": dry_run}
    results = _run([v.cell for v in variants], data, out, jobs=jobs, **how)
    if results is not None:
        _show(scaling_report(variants, results, _facts(data, base)), out, json_file)


@evals_app.command("ablation")
def eval_ablation(
    rollouts: RolloutsOption,
    out: OutOption,
    policy: PolicyOption = "demo",
    parts: Annotated[
        str, typer.Option(help="Of target, batches, precision, gamma, weighting.")
    ] = "target,batches,precision,gamma,weighting",
    trunk: TrunkOption = "2x64",
    prompts: Annotated[int, typer.Option(help="Prompts trained on.", min=1)] = 1600,
    samples: Annotated[int, typer.Option(help="Samples of each.", min=1)] = 4,
    gammas: Annotated[
        str | None, typer.Option(help="Else at the paper's horizons, in units of the p99 length.")
    ] = None,
    seeds: SeedsOption = 2,
    steps: StepsOption = 600,
    batch_rows: BatchOption = 16,
    learning_rate: RateOption = 3e-3,
    evaluations: EvaluationsOption = 10,
    heldout: HeldoutOption = None,
    heldout_prompts: HeldoutPromptsOption = 200,
    heldout_samples: HeldoutSamplesOption = 2,
    jobs: JobsOption = 1,
    launcher: LauncherOption = "plain",
    recipe: RecipeOption = "demo",
    override: OverrideOption = None,
    dry_run: DryRunOption = False,
    json_file: JsonOption = None,
) -> None:
    """Train the method and its ablations and draw the paper's figures 5 and 6.

    Example: `lenvm eval ablation --rollouts runs/demo/rollouts/sampled --out runs/grid --jobs 2`
    """
    from lenvm_rl.evals.grids.ablation import AblationSettings, ablation_grid, ablation_report

    settings = AblationSettings(
        parts=parts.split(","),
        trunk=_trunk(trunk),
        prompts=prompts,
        samples=samples,
        gammas=None if gammas is None else _gammas(gammas),
        seeds=seeds,
    )
    base = _base(steps, batch_rows, learning_rate, evaluations)
    data = _data(rollouts, out, policy, heldout, heldout_prompts, heldout_samples)
    variants = ablation_grid(data, settings, base)
    how = {"launcher": launcher, "recipe": recipe, "extra": override or (), "dry_run": dry_run}
    results = _run([v.cell for v in variants], data, out, jobs=jobs, **how)
    if results is not None:
        _show(ablation_report(variants, results, _facts(data, base)), out, json_file)


def _base(steps: int, batch_rows: int, learning_rate: float, evaluations: int) -> dict[str, Any]:
    """What all runs of a grid share, as fields of `Cell`."""
    return {
        "steps": steps,
        "batch_rows": batch_rows,
        "learning_rate": learning_rate,
        "evaluations": evaluations,
    }


def _trunk(name: str) -> str:
    """`demo` and `demo@K` are the shipped policy's trunk; other names stand as they are."""
    from lenvm_rl.demo.prompts import resolve_policy

    model, at, blocks = name.partition("@")
    return resolve_policy(model) + at + blocks


def _data(
    rollouts: Path, out: Path, policy: str, heldout: Path | None, prompts: int, samples: int
) -> Any:
    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.evals.grids.grid import prepare_data

    return prepare_data(
        rollouts,
        out,
        policy=resolve_policy(policy),
        heldout=heldout,
        heldout_prompts=prompts,
        heldout_samples=samples,
    )


def _run(
    cells: Sequence[Any],
    data: Any,
    out: Path,
    *,
    jobs: int,
    launcher: str,
    recipe: str,
    extra: Sequence[str],
    dry_run: bool,
) -> dict[Any, dict[str, Any]] | None:
    """Results of all cells; None after a dry run."""
    from lenvm_rl.evals.grids.grid import CellsFailed, run_grid
    from lenvm_rl.evals.grids.verl_cells import VerlLauncher, write_commands

    if launcher not in ("plain", "verl"):
        raise ValueError(f"--launcher must be plain or verl, got {launcher!r}.")
    trainer = None
    if launcher == "plain" and (dry_run or extra):
        raise ValueError("--dry-run and --override belong to --launcher verl.")
    if launcher == "verl":
        train = _verl_trainer(recipe)
        file, count = write_commands(cells, data, out, recipe=recipe, extra=extra)
        console.print(f"{count} runs, one command each: {file}", highlight=False)
        if dry_run:
            emit({"runs": count, "commands": str(file)}, None)
            return None
        trainer = VerlLauncher(out=out, train=train, extra=extra)
    try:
        return run_grid(cells, data, out, jobs=jobs, launcher=trainer, progress=True)
    except CellsFailed as error:
        console.print(f"[bold red]error[/]: {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error


def _verl_trainer(recipe: str) -> Any:
    """Runs verl with the recipe: a function of (overrides, log file, steps)."""
    from rich.console import Console

    from lenvm_rl.demo.launch import TrainingFailed, recipes_dir, run_trainer
    from lenvm_rl.evals.grids.grid import CellsFailed

    folder = recipes_dir() / "pretrain"
    if not (folder / f"{recipe}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ValueError(f"--recipe {recipe!r} is not in recipes/pretrain, which has {known}.")

    def train(overrides: Sequence[str], log: Path, steps: int) -> None:
        try:
            run_trainer(
                overrides,
                config_dir=folder,
                config_name=recipe,
                log_file=log,
                steps=steps,
                metric="critic/mse",
                console=Console(stderr=True, quiet=True),  # the grid has its own bar
                silent_after_s=3600.0,
            )
        except TrainingFailed as error:
            raise CellsFailed(str(error)) from error

    return train


def _facts(data: Any, base: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": data.fingerprint,
        "gamma": data.gamma,
        "length_p99": data.p99,
        "longest_response": data.longest_response,
        "share_truncated": data.share_truncated,
        **base,
    }


def _show(report: Any, out: Path, json_file: Path | None) -> None:
    paths = report.save(out)
    console.print(report.table())
    console.print("figures: " + ", ".join(str(p) for p in paths if p.suffix == ".png"))
    emit(report.to_dict(), json_file)


def _counts(option: str, text: str) -> list[int]:
    try:
        return sorted(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"{option} must be whole numbers with commas between, got {text!r}."
        ) from None


def _gammas(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--gammas must be numbers with commas between, got {text!r}.") from None
