"""How do the numbers of an evaluation lie on disk?

    <name>.json           all figures, one object
    <name>.jsonl          every row of every table, with "table" saying which
    <name>_<table>.csv    the same, one file per table

Numbers first: figures are drawn from these tables and can be drawn again without the model.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts.atomic import replacing

Row = Mapping[str, Any]


def save_results(
    out: str | Path,
    name: str,
    figures: Mapping[str, Any],
    tables: Mapping[str, Sequence[Row]],
) -> list[Path]:
    """Write all files of one evaluation (each whole or not at all); returns their paths."""
    out = Path(out)
    paths = [out / f"{name}.json", out / f"{name}.jsonl"]
    with replacing(paths[0]) as file:
        file.write_text(json.dumps(finite(figures), indent=2, allow_nan=False) + "\n")
    with replacing(paths[1]) as file:
        lines = [{"table": key, **row} for key, rows in tables.items() for row in rows]
        text = (json.dumps(finite(line), allow_nan=False) + "\n" for line in lines)
        file.write_text("".join(text))
    for key, rows in tables.items():
        if rows:
            paths.append(out / f"{name}_{key}.csv")
            with replacing(paths[-1]) as file, file.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    return paths


def load_tables(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Tables of a `<name>.jsonl` written by `save_results`."""
    tables: dict[str, list[dict[str, Any]]] = {}
    with Path(path).open() as lines:
        for line in lines:
            row = json.loads(line)
            tables.setdefault(row.pop("table"), []).append(row)
    return tables


def finite(value: Any) -> Any:
    """The value with NaN and infinities as None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value
