"""`lenvm demo`: the main job in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lenvm_rl.cli.app import OutOption, SeedOption, app, console, emit


@app.command()
def demo(
    out: OutOption = Path("runs/demo"),
    seed: SeedOption = 0,
    setup_seconds: Annotated[
        float | None, typer.Option(help="Time that set-up took, for the summary.")
    ] = None,
) -> None:
    """Run the main job on a CPU with the shipped policy: sample, pretrain, verify, report.

    Example: `lenvm demo --out runs/demo`
    """
    from lenvm_rl.demo.launch import TrainingFailed
    from lenvm_rl.demo.run import run_demo

    try:
        summary = run_demo(out, seed=seed, setup_s=setup_seconds, console=console)
    except TrainingFailed as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from error
    emit(summary, out / "summary.json")
