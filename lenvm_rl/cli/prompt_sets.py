"""`lenvm prompts`: a file of prompts from a named set or from a column of any data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lenvm_rl.cli.app import JsonOption, app, console, emit


@app.command()
def prompts(
    name: Annotated[
        str | None, typer.Argument(help="Set, e.g. gsm8k; `column` for any data set.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help=".jsonl or .parquet to write.")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show the known sets.")] = False,
    source: Annotated[
        str, typer.Option(help="Folder, file, owner/name, or `hub`: the set's own place there.")
    ] = "hub",
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Write at most so many (per file).", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Shuffle by it; else in order.")] = None,
    heldout: Annotated[
        float, typer.Option(help="Share of the prompts for a second file, *.heldout.*.")
    ] = 0.0,
    exclude: Annotated[
        list[Path] | None, typer.Option(help="Prompt file whose prompts to leave out; repeatable.")
    ] = None,
    keep_duplicates: Annotated[
        bool | None,
        typer.Option(
            "--keep-duplicates/--drop-duplicates", help="Equal prompts; only lifebench keeps them."
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="`column`: column with texts or messages.")
    ] = None,
    truth: Annotated[str | None, typer.Option(help="`column`: column of the ground truth.")] = None,
    template: Annotated[
        str, typer.Option(help="`column`: math, instructions, ..., or words with {prompt}.")
    ] = "plain",
    data_source: Annotated[
        str | None, typer.Option(help="`column`: written as data_source, e.g. math/mine.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Write the prompts of a set as a file that `lenvm` and verl read.

    Equal prompts are written once, and a prompt is on one side of the held-out split whatever
    else is in the file.

    Example: `lenvm prompts gsm8k --split train --heldout 0.05 --out runs/gsm8k.parquet`
    """
    from lenvm_rl.cli.graders import check_truths
    from lenvm_rl.prompts.files import write_prompts
    from lenvm_rl.prompts.prompt import read_prompts
    from lenvm_rl.prompts.sets import load_prompt_set

    if show_list:
        _show_sets(json_file)
        return
    if name is None or out is None:
        raise ValueError("name a set and --out FILE, or show the sets with --list.")
    if out.suffix not in (".jsonl", ".parquet"):  # before anything is loaded
        raise ValueError(f"--out {out}: prompts are written as .jsonl or .parquet.")
    chosen = _chosen(name, column, truth=truth, template=template, data_source=data_source)
    loaded = load_prompt_set(
        chosen,
        source=source,
        split=split,
        limit=limit,
        seed=seed,
        heldout=heldout,
        exclude=[prompt for path in exclude or () for prompt in read_prompts(path)],
        keep_duplicates=keep_duplicates,
    )
    check_truths([*loaded.prompts, *loaded.heldout])
    second = out.with_suffix(f".heldout{out.suffix}")
    if heldout and not (loaded.prompts and loaded.heldout):
        raise ValueError(
            f"--heldout {heldout} leaves one side empty: there are {len(loaded.prompts)} and "
            f"{len(loaded.heldout)} prompts."
        )
    write_prompts(loaded.prompts, out)
    figures: dict[str, Any] = {"set": name, "out": str(out), **loaded.counts()}
    if loaded.heldout:
        write_prompts(loaded.heldout, second)
        figures["heldout_out"] = str(second)
    console.print(_summary(figures))
    emit(figures, json_file)


def _chosen(name: str, column: str | None, **column_settings: str | None) -> Any:
    """A set's name, or the set of a column."""
    from lenvm_rl.prompts.sets import column_set

    if name != "column":
        stray = [key for key, value in column_settings.items() if value not in (None, "plain")]
        if column is not None or stray:
            given = " and ".join(f"--{key.replace('_', '-')}" for key in stray or ["column"])
            raise ValueError(f"{given} is for `lenvm prompts column`; {name} has its own.")
        return name
    if column is None:
        raise ValueError("`lenvm prompts column` needs --column NAME, the column with the prompts.")
    given = {key: value for key, value in column_settings.items() if value is not None}
    return column_set(column, **given)  # pyright: ignore[reportArgumentType]


def _summary(figures: dict[str, Any]) -> str:
    dropped = [f"{figures[key]} {key}" for key in ("filtered", "duplicates", "excluded")]
    text = f"{figures['rows']} rows, {', '.join(dropped)}: {figures['prompts']} prompts"
    held = f" and {figures['heldout']} held out" if figures["heldout"] else ""
    return f"{text}{held} in {figures['out']}"


def _show_sets(json_file: Path | None) -> None:
    """The known sets: a line each, and all that is known of them as JSON."""
    from rich.table import Table

    from lenvm_rl.prompts.sets import PROMPT_SETS

    table = Table()
    table.add_column("set", no_wrap=True)
    table.add_column("what")
    table.add_column("hub, split", overflow="fold")
    table.add_column("template", no_wrap=True)
    for one in PROMPT_SETS.values():
        table.add_row(one.name, one.about, f"{one.hub}, {one.split}", one.template)
    table.add_row("column", "a column of any data set", "--source, --split", "--template")
    console.print(table)
    known = ("name", "about", "hub", "config", "split", "columns", "fields", "truth", "template")
    sets = [{key: getattr(one, key) for key in (*known, "licence")} for one in PROMPT_SETS.values()]
    emit({"sets": sets}, json_file)
