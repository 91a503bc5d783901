"""How does a length report look on a screen and on paper?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rich.console import Group

    from lenvm_rl.rollouts.report import LengthReport

_SHOWN_SOURCES = 12
_BINS = 60


def report_table(report: LengthReport) -> Group:
    """The report on one screen, to print with rich: lengths per source, spread, gamma, warnings."""
    from rich.box import SIMPLE
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, title=f"Response lengths in tokens: {report.path}")
    table.add_column("source", no_wrap=True, min_width=8)
    for name in ("rows", "mean", "std", "p5", "p50", "p90", "p99", "max", "truncated"):
        table.add_column(name, justify="right")
    rows = (
        [report.overall, *report.sources[:_SHOWN_SOURCES]]
        if len(report.sources) > 1
        else [report.overall]
    )
    for entry in rows:
        p = entry.percentiles
        quantiles = [f"{p[key]:,.0f}" for key in ("p5", "p50", "p90", "p99")]
        table.add_row(
            entry.source,
            f"{entry.rows:,}",
            f"{entry.mean:,.0f}",
            f"{entry.std:,.0f}",
            *quantiles,
            f"{entry.max:,}",
            f"{entry.share_truncated:.2%}",
        )
    lines = [
        f"{report.prompts:,} prompts, {report.overall.rows:,} completions, "
        f"{report.overall.tokens:,} response tokens"
    ]
    hidden = len(report.sources) - _SHOWN_SOURCES
    if hidden > 0:
        lines.append(f"{hidden} smaller sources are in the saved table, not shown here")
    if report.within_prompt:
        spread = report.within_prompt
        lines.append(
            f"within a prompt: std {spread.std:,.1f} tokens, std/mean "
            f"{spread.relative_std:.2f} ({spread.prompts:,} prompts)"
        )
    lines.append(
        f"suggested gamma: {report.suggested_gamma:.6g} "
        f"(p{report.gamma_percentile:g} length gets u = {report.gamma_u:g})"
    )
    warnings = [Text(f"warning: {text}", style="yellow") for text in report.warnings]
    return Group(table, *(Text(line) for line in lines), *warnings)


def plot_lengths(report: LengthReport, path: Path) -> None:
    """Histogram of lengths as PNG: ended and cut rows stacked, percentiles marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # of the extra `evals`
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # The rest beyond p99.9 goes into the last bin, so that a few long rows do not squeeze the rest.
    width = max(1, int(np.ceil(report.overall.percentiles["p99.9"] / _BINS)))
    edges = np.arange(0, (_BINS + 1) * width, width)
    ended, truncated = _binned(report.ended.counts, width), _binned(report.truncated.counts, width)
    axes.bar(edges[:-1], ended, width, align="edge", label="ended by EOS", color="#4878a8")
    if report.overall.truncated_rows:
        style = {"align": "edge", "label": "cut by the limit", "color": "#d1603d"}
        axes.bar(edges[:-1], truncated, width, bottom=ended, **style)
    top = 1.2 * float((ended + truncated).max())
    axes.set_ylim(0, top)
    for name in ("p50", "p90", "p99"):
        x = report.overall.percentiles[name]
        axes.axvline(x, color="black", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"{name} {x:,.0f}", (x, 0.99 * top), rotation=90, ha="right", va="top", fontsize=8
        )
    axes.set_xlabel(f"response length (tokens; last bar: all from {edges[-2]:,} on)")
    axes.set_ylabel("completions")
    total = report.overall
    axes.set_title(
        f"{total.rows:,} completions, mean {total.mean:,.1f}, std {total.std:,.1f}, "
        f"{total.share_truncated:.2%} cut, suggested gamma {report.suggested_gamma:.5g}",
        fontsize=10,
    )
    axes.legend()
    figure.savefig(path, format="png", dpi=150)


def _binned(counts: np.ndarray, width: int) -> np.ndarray:
    """Sum counts of single lengths into `_BINS` bins; the last takes all that is longer."""
    bins = np.minimum(np.arange(len(counts)) // width, _BINS - 1)
    return np.bincount(bins, weights=counts, minlength=_BINS)
