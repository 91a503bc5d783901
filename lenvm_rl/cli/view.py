"""`lenvm view`: how a value moves along responses, as a page to open in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lenvm_rl.cli.app import JsonOption, app, console, emit


@app.command()
def view(
    lenvm: Annotated[
        list[Path],
        typer.Option(help="Value model: directory, hub id, or `demo`; several are drawn together."),
    ],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
    rollouts: Annotated[Path | None, typer.Option(help="Rollout file.")] = None,
    prompt_id: Annotated[
        list[str] | None, typer.Option(help="Only completions of this prompt (may be repeated).")
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many completions.", min=1)] = 20,
    prompt: Annotated[
        str | None, typer.Option(help="Or one user message, or @FILE that holds it.")
    ] = None,
    response: Annotated[
        str | None, typer.Option(help="With --prompt: the response, or @FILE.")
    ] = None,
    truncated: Annotated[
        bool, typer.Option("--cut", help="The response given as text did not end by itself.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Draw predicted and true remaining lengths along responses, and the shifts on their text.

    The page is one file that opens from disk without a network. Examples:

    `lenvm view --lenvm runs/demo/checkpoint/lenvm --rollouts runs/demo/rollouts/heldout
    --limit 12 --out view.html`

    `lenvm view --lenvm demo --prompt "12 + 7 = ?"
    --response "the answer is 19" --out view.html`
    """
    from lenvm_rl.model import find_lenvm
    from lenvm_rl.pages.view import view_rollouts, view_text

    lenvm = [find_lenvm(name, option="--lenvm") for name in lenvm]
    if (rollouts is None) == (prompt is None) or (prompt is None) != (response is None):
        raise ValueError("give either --rollouts, or --prompt and --response together.")
    if rollouts is not None:
        if truncated:
            raise ValueError("--cut is about a response given as text; a rollout file knows it.")
        figures = view_rollouts(lenvm, rollouts, out, prompt_ids=prompt_id or (), limit=limit)
    else:
        if prompt_id:
            raise ValueError("--prompt-id chooses within --rollouts, which was not given.")
        assert prompt is not None and response is not None
        figures = view_text(lenvm, _text(prompt), _text(response), out, ended=not truncated)
    console.print(
        f"{figures['responses']} responses, {figures['tokens']:,} tokens, {figures['models']} "
        f"models: {out} ({figures['bytes'] / 1e6:.1f} MB)"
        + (f"; {figures['left_out']:,} more responses left out" if figures["left_out"] else "")
    )
    emit(figures, json_file)


def _text(given: str) -> str:
    """The text itself, or what `@FILE` holds."""
    if not given.startswith("@"):
        return given
    path = Path(given[1:])
    if not path.is_file():
        raise ValueError(f"{given!r} names a file that does not exist: {path}.")
    return path.read_text(encoding="utf-8")
