"""How do the reports of evaluations look on a screen?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lenvm_rl.evals.length_control.control_report import ControlReport
    from lenvm_rl.evals.tradeoff.evaluate import TradeoffReport


def control_view(report: ControlReport) -> Table:
    """One line per control and method."""
    figures = report.figures
    table = Table(
        title=f"Length control on {figures['prompts']} prompts; unguided: "
        f"{figures['unguided_length']:.0f} tokens, "
        f"accuracy {_share(figures['unguided_accuracy'])}, "
        f"log-probability {figures['unguided_logprob']:.2f} a token"
    )
    table.add_column("control")
    table.add_column("method")
    for name in ("Length Score", "deviation", "accuracy", "ended", "log-prob"):
        table.add_column(name, justify="right")
    for row in report.tables["summary"]:
        table.add_row(
            row["control"],
            row["method"],
            f"{row['score']:.1f}",
            f"{row['deviation']:.1f} %",
            _share(row["accuracy"]),
            f"{row['ended']:.1%}",
            f"{row['logprob']:.2f}",
        )
    return table


def _share(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.1%}"


def tradeoff_view(report: TradeoffReport) -> Group:
    """One line per beta, and where the curves lie."""
    figures = report.figures
    table = Table(title=f"Accuracy against length, {figures['prompts']} prompts")
    for name in ("beta", "mean length", "accuracy", "hard budget there", "log-prob"):
        table.add_column(name, justify="right")
    for row in report.tables["guided"]:
        table.add_row(
            f"{row['beta']:g}",
            f"{row['length']:.1f}",
            f"{row['accuracy']:.1%} ± {row['accuracy_se']:.1%}",
            "-" if math.isnan(row["budget_accuracy"]) else f"{row['budget_accuracy']:.1%}",
            _number(row["logprob"], digits=2),
        )
    kept = figures["accuracy_kept_there"]
    line = (
        f"where the hard budget keeps half of the accuracy ({figures['half_accuracy_length']:.1f} "
        f"tokens), guidance keeps {'-' if math.isnan(kept) else f'{kept:.1%}'}"
    )
    return Group(table, *_budgets(report), Text(line))


def _budgets(report: TradeoffReport) -> list[Table]:
    """Budgets that were asked for, in the prompt or of thinking tokens."""
    tables = []
    for name, title in (("prompted", "in the prompt"), ("thinking", "of thinking tokens")):
        rows = report.tables.get(name)
        if rows:
            table = Table(title=f"Budget {title}")
            for column in ("B", "mean length", "accuracy"):
                table.add_column(column, justify="right")
            for row in rows:
                accuracy = f"{row['accuracy']:.1%} ± {row['accuracy_se']:.1%}"
                table.add_row(str(row["budget"]), f"{row['length']:.1f}", accuracy)
            tables.append(table)
    return tables


def _number(value: float, *, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
