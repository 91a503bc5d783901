"""`lenvm eval length-tokens`: which words make a response longer?"""

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


@evals_app.command("length-tokens")
def eval_length_tokens(
    lenvm: LenvmOption,
    rollouts: Annotated[Path, typer.Option(help="Completions of its policy.")],
    out: OutOption,
    threshold: Annotated[float, typer.Option(help="Least |score| that counts.")] = 0.01,
    min_count: Annotated[
        int, typer.Option(help="Occurrences that the ranking by mean asks for.", min=1)
    ] = 20,
    min_prompts: Annotated[
        int, typer.Option(help="Different prompts that it asks for.", min=0)
    ] = 5,
    top: Annotated[int, typer.Option(help="Words per ranking.", min=1)] = 30,
    limit: Annotated[int | None, typer.Option(help="Use at most so many completions.")] = None,
    any_policy: Annotated[
        bool, typer.Option("--any-policy", help="Accept rollouts of another policy.")
    ] = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Rank the words after which more, or less, is to be expected; tables, page, word clouds.

    Example: `lenvm eval length-tokens --lenvm runs/demo/checkpoint/lenvm
    --rollouts runs/demo/rollouts/heldout --out runs/length-tokens`
    """
    from lenvm_rl.evals.length_tokens.draw import view
    from lenvm_rl.evals.length_tokens.evaluate import Settings, run

    report = run(
        lenvm,
        rollouts,
        out,
        settings=Settings(
            threshold=threshold, min_count=min_count, min_prompts=min_prompts, top=top, seed=seed
        ),
        limit=limit,
        any_policy=any_policy,
        progress=True,
    )
    console.print(view(report))
    emit(report.to_dict(), json_file)
