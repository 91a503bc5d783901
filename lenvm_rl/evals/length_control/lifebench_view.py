"""How does a LIFEBench report look on a screen? Table 2, with the paper's LenVM rows beside it."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lenvm_rl.evals.length_control.lifebench_report import LifebenchReport


def lifebench_view(report: LifebenchReport) -> Group:
    """Table 2's layout, then what the official programs would print."""
    figures, unit = report.figures, report.figures["unit"]
    targets = ", ".join(map(str, figures["targets"]))
    table = Table(
        title=f"LIFEBench in {unit}: {figures['prompts']} prompts x {figures['samples']}, "
        f"targets {targets}; failures score 0"
    )
    table.add_column("", no_wrap=True)
    for name in ("|d|", "equal to", "at most", "at least"):
        table.add_column(name, justify="right")
    for row in report.tables["table2"]:
        shown = row["source"] == "here" or "Qwen" in row["model"]
        if shown:
            label = row["model"] if row["source"] == "here" else f"paper: {row['model']}"
            scores = (_cell(row[name]) for name in ("equal", "at_most", "at_least"))
            table.add_row(label, _cell(row["deviation"], " %", 0), *scores)
    return Group(table, _summary(report), Text(_note(figures)))


def _summary(report: LifebenchReport) -> Table:
    official = {
        (row["method"], row["control"], row["scorer"]): row["score"]
        for row in report.tables["official"]
    }
    table = Table(title="per control, and as LenVM's and LIFEBench's own programs score it")
    for name in ("control", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("score", "LenVM", "official", "failed", "accuracy", "log-prob"):
        table.add_column(name, justify="right")
    for row in report.tables["summary"]:
        key = row["method"], row["control"]
        table.add_row(
            row["control"],
            row["method"],
            _cell(row["score"]),
            _cell(official[*key, "fraction"]),
            _cell(official[*key, "percent"]),
            f"{row['failed']:.1%}",
            _cell(100 * row["accuracy"], " %"),
            _cell(row["logprob"], digits=2),
        )
    return table


def _note(figures: dict[str, Any]) -> str:
    ratios = ", ".join(f"{lang} {x:.2f}" for lang, x in figures["tokens_per_word"].items())
    asked = "the prompts ask for it in words" if figures["asked_in_words"] else "asked by no words"
    return f"the length: {asked}; tokens per word of unguided samples: {ratios}"


def _cell(x: float, unit: str = "", digits: int = 1) -> str:
    return "-" if math.isnan(x) else f"{x:.{digits}f}{unit}"
