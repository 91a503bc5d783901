"""`lenvm distill`: teach a candidate head what the exact scorer says of every candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lenvm_rl.cli.app import JsonOption, OutOption, SeedOption, app, console, emit


@app.command()
def distill(
    lenvm: Annotated[
        Path,
        typer.Option(help="Teacher: a LenVM without candidate head (directory, hub id, `demo`)."),
    ],
    rollouts: Annotated[Path, typer.Option(help="Completions to draw states from.")],
    out: OutOption,
    head: Annotated[
        Path | None,
        typer.Option(help="LenVM with a candidate head; default: a fresh one on LENVM's trunk."),
    ] = None,
    policy: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")] = "demo",
    val_rollouts: Annotated[
        Path | None, typer.Option(help="Completions to measure on; default: the first of them.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.", min=1)] = 300,
    completions: Annotated[int, typer.Option(help="Completions of a step.", min=1)] = 16,
    states: Annotated[int, typer.Option(help="States drawn from each completion.", min=1)] = 8,
    top_k: Annotated[int, typer.Option(help="Candidates per state.", min=1)] = 20,
    min_p: Annotated[float, typer.Option(help="Candidates: least relative probability.")] = 0.02,
    learning_rate: Annotated[float, typer.Option(help="At the start; cosine to 0.")] = 1e-3,
    max_length: Annotated[int, typer.Option(help="Tokens read of a completion.", min=2)] = 4096,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Distil the exact scorer into a candidate head: the head alone learns, its trunk stays.

    Minutes of work, which begin anew if killed: OUT is written whole, at the end, or not at all.

    Example: `lenvm distill --lenvm runs/demo/checkpoint/lenvm --head runs/q-head/checkpoint/lenvm
    --rollouts runs/demo/rollouts/train --val-rollouts runs/demo/rollouts/validation
    --out runs/q-head/distilled`
    """
    import torch

    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.guidance.heads.distill import Distiller, DistillSettings
    from lenvm_rl.model import find_lenvm, load_tokenizer, save_checkpoint
    from lenvm_rl.rollouts import RolloutStream
    from lenvm_rl.rollouts.progress import progress_bar

    lenvm = find_lenvm(lenvm, option="--lenvm")
    head = None if head is None else find_lenvm(head, option="--head")
    torch.manual_seed(seed)
    settings = DistillSettings(
        candidates=top_k,
        min_p=min_p,
        states=states,
        completions=completions,
        learning_rate=learning_rate,
        max_length=max_length,
    )
    distiller = Distiller.load(
        exact=lenvm,
        head=head,
        policy=resolve_policy(policy),
        settings=settings,
        seed=seed,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    tokenizer = load_tokenizer(head or lenvm)

    def batches(path: Path, epochs: int | None):
        stream = RolloutStream(path, seed=seed, epochs=epochs)
        while rows := stream.batch(completions):
            yield [(row.prompt_ids, row.response_ids) for row in rows]

    held_out = batches(val_rollouts or rollouts, 1)
    measured = [distiller.ask(rows) for rows, _ in zip(held_out, range(16), strict=False)]
    before = distiller.compare(measured)
    with progress_bar("distilling", steps, shown=console.is_terminal) as advance:
        losses = distiller.train(batches(rollouts, None), steps=steps, advance=advance)
    figures = {
        "lenvm": str(save_checkpoint(distiller.head.cpu(), tokenizer, out)),
        "steps": steps,
        "states": sum(len(batch.mask) for batch in measured),
        "held_out": val_rollouts is not None,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "before": before,
        "after": distiller.compare(measured),
    }
    emit(figures, json_file)
