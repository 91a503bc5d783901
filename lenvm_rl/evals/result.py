"""The result of an evaluation, and how it lies on disk.

    NAME.json           all figures, one object; and `headline`: which of them head a report
    NAME.jsonl          every row of every table, with "table" saying which
    NAME_TABLE.csv      the same, one file per table

Numbers first: figures are drawn from these tables and can be drawn again without the model.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenvm_rl.pages.result_files import load_tables, read_figures
from lenvm_rl.rollouts.atomic import finite, replacing, write_json

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Result:
    """Figures and tables of one evaluation."""

    name: str
    """Of its files, e.g. `prediction`."""
    figures: Mapping[str, Any]
    """Every number by name, objects within objects allowed; NaN where one is not defined."""
    tables: Mapping[str, Sequence[Row]]
    """Rows by name of the table."""
    headline: Sequence[tuple[str, str, str]] = ()
    """(figure, label, format) of the few that head a report: the name of the figure (`a.b` inside
    an object), what stands beside it, and a format of Python's, or `words` for a list of texts."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def save(self, out: str | Path) -> list[Path]:
        """Write the files of this module (each whole or not at all); returns their paths."""
        out = Path(out)
        figures = self.to_dict()
        if self.headline:
            figures["headline"] = [list(entry) for entry in self.headline]
        paths = [write_json(out / f"{self.name}.json", figures), out / f"{self.name}.jsonl"]
        with replacing(paths[1]) as file, file.open("w") as stream:
            for key, rows in self.tables.items():
                for row in rows:
                    line = finite({"table": key, **row})
                    stream.write(json.dumps(line, allow_nan=False) + "\n")
        for key, rows in self.tables.items():
            if rows:
                paths.append(out / f"{self.name}_{key}.csv")
                with replacing(paths[-1]) as file, file.open("w", newline="") as stream:
                    writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
        return paths

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """The result of a NAME.json and the NAME.jsonl beside it; None where a number was NaN."""
        path = Path(path)
        figures, headline = read_figures(path)
        return cls(path.stem, figures, load_tables(path.with_suffix(".jsonl")), headline)
