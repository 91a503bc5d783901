"""All results of a run directory on one HTML page: a screen of headlines, then each in full.

The page holds its pictures and needs no network and no script. What cannot be read is named at the
end, and does not keep the rest from being shown.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lenvm_rl.pages.html import render
from lenvm_rl.pages.result_files import Found, FoundResult, find_results
from lenvm_rl.rollouts.atomic import replacing

_ROWS = 30  # rows of a table on the page; the rest is in its file
_MOST = 4  # numbers on a card of a result that names none to stand first
_NAMED = 60  # unknown files named on the page


def write_report(run: str | Path, out: str | Path) -> dict[str, Any]:
    """Put all results under a directory on one HTML page that needs no network.

    Files that cannot be read are named and do not stop it. Lengths of a rollout file:
    `lenvm report`.

    Example: `lenvm eval report runs/evals --out runs/evals/report.html`

    Args:
        run: directory that evaluations wrote into, at any depth.
        out: HTML file to write.
    Returns:
        Figures: results and pictures shown, broken (path -> reason), unknown (paths), bytes.
    Raises:
        ValueError: `run` is no directory.
    """
    run, out = Path(run), Path(out)
    found = find_results(run)
    # An earlier report in the folder is neither a result nor unknown.
    found.unknown[:] = [path for path in found.unknown if path.resolve() != out.resolve()]
    html = report_html(found, run).encode()
    with replacing(out) as file:
        file.write_bytes(html)
    return {
        "report": str(out),
        "results": [_where(result, run) for result in found.results],
        "pictures": sum(len(result.pictures) for result in found.results),
        "broken": {str(path.relative_to(run)): reason for path, reason in found.broken},
        "unknown": [str(path.relative_to(run)) for path in found.unknown],
        "bytes": len(html),
    }


def view(figures: Mapping[str, Any]) -> Any:
    """What the page shows, and what it could not, as a table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

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


def report_html(found: Found, run: Path) -> str:
    """The page of what was found under `run`."""
    unknown = [str(path.relative_to(run)) for path in found.unknown]
    return render(
        "report.html",
        styles=["common.css", "report.css"],
        scripts=[],
        title=f"Results of {run.resolve().name}",
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        results=[_shown(result, run) for result in found.results],
        broken=[(str(path.relative_to(run)), reason) for path, reason in found.broken],
        unknown=unknown[:_NAMED],
        more_unknown=max(0, len(unknown) - _NAMED),
        data=[str(path.relative_to(run)) for path in found.data],
    )


def _shown(result: FoundResult, run: Path) -> dict[str, Any]:
    return {
        "id": f"r-{_where(result, run)}",
        "name": result.name.replace("_", " ").replace("-", " "),
        "where": _where(result, run),
        "written": f"{result.written:%Y-%m-%d %H:%M}",
        "headlines": headlines(result.figures, result.headline),
        "figures": [(key, _cell(value)) for key, value in flatten(result.figures).items()],
        "pictures": [(picture.stem, _data_uri(picture)) for picture in result.pictures],
        "tables": [_table(name, rows) for name, rows in result.tables.items() if rows],
    }


def _where(result: FoundResult, run: Path) -> str:
    return str((result.folder / result.name).relative_to(run))


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = list(dict.fromkeys(key for row in rows[:_ROWS] for key in row))
    return {
        "name": name.replace("_", " "),
        "columns": columns,
        "rows": [[_cell(row.get(key)) for key in columns] for row in rows[:_ROWS]],
        "count": len(rows),
        "more": max(0, len(rows) - _ROWS),
    }


def _cell(value: Any) -> str:
    """A number with four significant digits, a text as it is, None and NaN as a dash."""
    if isinstance(value, str):
        try:
            value = float(value) if "." in value else int(value)  # cells of a CSV file
        except ValueError:
            return value[:200]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(_cell(x) for x in value[:12]) + (", ..." if len(value) > 12 else "")
    return str(value)[:200]


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def headlines(
    figures: Mapping[str, Any], headline: Sequence[tuple[str, str, str]]
) -> list[tuple[str, str]]:
    """(label, number as text) of those that stand first; where none is named, the first numbers.

    Args:
        figures: objects within objects allowed.
        headline: (figure, label, format), see `evals.result.Result`.
    """
    flat = flatten(figures)
    named = [
        (label, text)
        for path, label, form in headline
        if (text := _written(flat.get(path), form)) is not None
    ]
    if named:
        return named
    numbers = [(key, _written(value, ".4g")) for key, value in flat.items()]
    return [(key.replace("_", " "), text) for key, text in numbers if text is not None][:_MOST]


def flatten(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Objects within objects as `outer.inner`; lists stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _written(value: Any, form: str) -> str | None:
    """The value as text; None where it is missing or of another kind than expected."""
    if form == "words":
        fits = isinstance(value, list) and value and all(isinstance(x, str) for x in value)
        return ", ".join(value[:4]) if fits else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    try:
        return format(int(value) if form.endswith("d") else value, form)
    except ValueError:  # no format of Python's
        return f"{value:.4g}"
