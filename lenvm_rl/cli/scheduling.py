"""`lenvm eval scheduling`: what are length predictions worth to a server?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lenvm_rl.cli.app import (
    JsonOption,
    LenvmOption,
    OutOption,
    SeedOption,
    console,
    emit,
    evals_app,
)


@evals_app.command("scheduling")
def eval_scheduling(
    lenvm: LenvmOption,
    rollouts: Annotated[Path, typer.Option(help="Rollouts of unseen prompts: the requests.")],
    out: OutOption,
    train: Annotated[
        Path | None, typer.Option(help="Rollouts it was trained on: fits the naive predictors.")
    ] = None,
    loads: Annotated[
        str, typer.Option(help="Tokens asked for per token that can be written.")
    ] = "0.8,0.95,1.1,1.3",
    requests: Annotated[int, typer.Option(help="Requests per simulation.", min=2)] = 1000,
    seeds: Annotated[int, typer.Option(help="Draws of requests and arrivals.", min=1)] = 5,
    slots: Annotated[int, typer.Option(help="Requests that run at a time.", min=1)] = 16,
    step_seconds: Annotated[
        float, typer.Option(help="Time of a step; 1 counts latency in steps.")
    ] = 1.0,
    step_seconds_per_request: Annotated[
        float, typer.Option(help="Time that each running request adds to a step.")
    ] = 0.0,
    resume_steps: Annotated[
        int, typer.Option(help="Steps that a request loses by being put back.", min=0)
    ] = 0,
    preempt_until: Annotated[
        float, typer.Option(help="Share of the first prediction after which a slot is kept.")
    ] = 0.8,
    any_policy: Annotated[
        bool, typer.Option("--any-policy", help="Accept rollouts of another policy.")
    ] = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Serve real lengths in simulated orders: first come, shortest predicted, perfect knowledge.

    Example: `lenvm eval scheduling --lenvm runs/demo/checkpoint/lenvm
    --rollouts runs/demo/rollouts/heldout --train runs/demo/rollouts/train --out runs/scheduling`
    """
    from lenvm_rl.evals.scheduling.draw import view
    from lenvm_rl.evals.scheduling.evaluate import Settings, run
    from lenvm_rl.evals.scheduling.queueing import Server

    report = run(
        lenvm,
        rollouts,
        out,
        train=train,
        settings=Settings(
            loads=_loads(loads),
            requests=requests,
            seeds=seeds,
            preempt_until=preempt_until,
            server=Server(
                slots=slots,
                step_seconds=step_seconds,
                step_seconds_per_request=step_seconds_per_request,
                resume_steps=resume_steps,
            ),
            seed=seed,
        ),
        any_policy=any_policy,
        progress=True,
    )
    console.print(view(report))
    emit(report.to_dict(), json_file)


def _loads(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--loads must be numbers with commas between, got {text!r}.") from None
