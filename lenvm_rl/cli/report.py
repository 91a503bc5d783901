"""`lenvm eval report`: all results of a run directory on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lenvm_rl.cli.app import JsonOption, console, emit, evals_app


@evals_app.command("report")
def eval_report(
    run: Annotated[Path, typer.Argument(help="Directory that evaluations wrote into.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
    json_file: JsonOption = None,
) -> None:
    """Put all results under a directory on one HTML page that needs no network.

    Files that cannot be read are named and do not stop it.

    Example: `lenvm eval report runs/evals --out runs/evals/report.html`
    """
    from lenvm_rl.pages.report import write_report

    figures = write_report(run, out)
    console.print(report_view(figures))
    emit(figures, json_file)


def report_view(figures: dict[str, Any]) -> Table:
    """What the page shows, and what it could not."""
    size = f"{figures['bytes'] / 1e6:.1f} MB"
    table = Table(title=f"{figures['report']}: {len(figures['results'])} results, {size}")
    table.add_column("found")
    table.add_column("what")
    for name in figures["results"]:
        table.add_row("result", escape(name))
    for path, reason in figures["broken"].items():
        table.add_row("[red]broken[/]", escape(f"{path}: {reason}"))
    if figures["unknown"]:
        table.add_row("unknown", f"{len(figures['unknown'])} files, named on the page")
    return table
