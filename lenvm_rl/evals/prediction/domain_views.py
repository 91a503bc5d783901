"""How do table 3 and the errors against single outcomes look on a screen?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from lenvm_rl.evals.prediction.domains import PAPER_DOMAINS, PAPER_TABLE_3

_MOST_COLUMNS = 4
_NAMES = {
    "lenvm": "LenVM",
    "mean": "training mean",
    "linear": "linear in prompt length",
    "survival": "given tokens so far",
}


def domain_views(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """Tables `domains` (with the paper's) and `outcomes`, where a report has them."""
    views = []
    if tables.get("domains"):
        views.append(_table_3(tables["domains"]))
    if tables.get("outcomes"):
        views.append(_outcomes(tables["outcomes"]))
    return views


def _table_3(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Predictors x domains when there are few domains, else domains x predictors."""
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    predictors = list(dict.fromkeys(row["predictor"] for row in rows))
    cells = {(row["predictor"], row["domain"]): row for row in rows}
    title = "MRE at the prompt by domain, % (in brackets: noise-corrected)"
    if len(domains) > _MOST_COLUMNS:
        table = Table("domain", "prompts", *(_NAMES[name] for name in predictors), title=title)
        for domain in domains:
            prompts = cells[predictors[0], domain]["prompts"]
            values = [_mre(cells[name, domain]) for name in predictors]
            table.add_row(escape(domain), f"{prompts}", *values)
        return table
    table = Table("", *(escape(domain) for domain in domains), title=title)
    for name in predictors:
        table.add_row(_NAMES[name], *(_mre(cells[name, domain]) for domain in domains))
    table.add_section()
    words = ", ".join(PAPER_DOMAINS)
    for name, values in PAPER_TABLE_3.items():
        own = dict(zip(PAPER_DOMAINS, values, strict=True))
        shown = [f"{own[domain]:.1f}" if domain in own else "" for domain in domains]
        if not any(shown):
            shown[0] = " / ".join(f"{value:.1f}" for value in values)
        table.add_row(f"paper, {name} ({words})", *shown)
    return table


def _mre(row: Mapping[str, Any]) -> str:
    corrected = row["mre_corrected"]
    return f"{100 * row['mre']:.1f}" + (
        "" if math.isnan(corrected) else f" ({100 * corrected:.1f})"
    )


def _outcomes(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Against single outcomes, tokens")
    table.add_column("predictor", no_wrap=True)
    for name in ("MAE at the prompt", "tau", "MAE over all states", "tau"):
        table.add_column(name, justify="right")
    cells = {(row["predictor"], row["at"]): row for row in rows}
    for name in dict.fromkeys(row["predictor"] for row in rows):
        line = []
        for at in ("s0", "all"):
            row = cells.get((name, at))
            line += [f"{row['mae']:.1f}", _number(row["kendall_tau"])] if row else ["", ""]
        table.add_row(_NAMES[name], *line)
    return table


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
