"""Lengths of a rollout file: percentiles, share truncated, suggested gamma; numbers and picture."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lenvm_rl.core import gamma_for_length
from lenvm_rl.rollouts.atomic import replacing, write_json
from lenvm_rl.rollouts.columns import DistinctDigests, list_lengths, name_digests
from lenvm_rl.rollouts.lengths import AdjacentRuns, LengthHistogram, WithinPrompt
from lenvm_rl.rollouts.reader import RolloutReader

if TYPE_CHECKING:
    from rich.console import Group

PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99, 99.9)
TRUNCATED_WARNING = 0.01
"""Share of truncated completions above which dropping them visibly biases lengths (spec section
2)."""
_MOST_SOURCES = 64
OTHER_SOURCES = "(other sources)"

_HEADLINE = (
    ("rows", "completions", ",d"),
    ("mean", "mean length, tokens", ".1f"),
    ("share_truncated", "truncated by the limit", ".2%"),
    ("suggested_gamma", "gamma that suits", ".5f"),
)
"""(figure, label, format) of those that stand first on a page of results."""
_SHOWN_SOURCES = 12
_BINS = 60
_GROUPED = 0.9
"""Share of completions beside one of the same prompt from which on their spread means something."""


@dataclass(frozen=True)
class Lengths:
    """Response lengths of some rows, in tokens, EOS included; truncated rows count with what was
    seen."""

    source: str
    """`data_source`, or `all`."""
    rows: int
    tokens: int
    mean: float
    std: float
    """Population standard deviation."""
    min: int
    percentiles: dict[str, float]
    """`p1` ... `p99.9`, interpolated linearly."""
    max: int
    truncated_rows: int
    """Rows ended by the token limit: their length is a lower bound."""
    share_truncated: float
    """truncated_rows / rows."""


@dataclass(frozen=True)
class LengthReport:
    """Everything `length_report` found."""

    path: str
    prompts: int
    """Distinct values of `prompt_id`."""
    overall: Lengths
    """All rows."""
    sources: list[Lengths]
    """One entry per data source, most rows first; beyond 64 sources the rest share one entry."""
    within_prompt: WithinPrompt | None
    """None where the completions of a prompt do not lie side by side."""
    suggested_gamma: float
    """Discount at which `gamma_percentile` of the lengths has discounted length `gamma_u`."""
    gamma_percentile: float
    gamma_u: float
    warnings: list[str]
    ended: LengthHistogram = field(repr=False)
    """Lengths of the rows that ended by themselves."""
    truncated: LengthHistogram = field(repr=False)
    """Lengths of the rows that were truncated."""

    def to_dict(self) -> dict[str, Any]:
        """All figures but the histograms, JSON-able."""
        return {
            "path": self.path,
            "prompts": self.prompts,
            **{key: value for key, value in asdict(self.overall).items() if key != "source"},
            "sources": [asdict(source) for source in self.sources],
            "within_prompt": asdict(self.within_prompt) if self.within_prompt else None,
            "suggested_gamma": self.suggested_gamma,
            "gamma_percentile": self.gamma_percentile,
            "gamma_u": self.gamma_u,
            "warnings": self.warnings,
        }

    def save(self, directory: str | os.PathLike[str]) -> list[Path]:
        """Write lengths.json, lengths.csv, length_histogram.csv and lengths.png; returns the paths.

        The CSV has a line per source, `all` first; the histogram CSV one per length that occurs.
        The figure needs matplotlib.
        """
        directory = Path(directory)
        names = ("lengths.json", "lengths.csv", "length_histogram.csv", "lengths.png")
        paths = [directory / name for name in names]
        write_json(paths[0], {**self.to_dict(), "headline": _HEADLINE})
        _write_csv(paths[1], [_flat(entry) for entry in (self.overall, *self.sources)])
        _write_csv(paths[2], self._histogram_rows())
        with replacing(paths[3]) as temporary:
            plot_lengths(self, temporary)
        return paths

    def _histogram_rows(self) -> list[dict[str, int]]:
        size = max(len(self.ended.counts), len(self.truncated.counts))
        both = np.zeros((2, size), dtype=np.int64)
        for row, histogram in zip(both, (self.ended, self.truncated), strict=True):
            row[: len(histogram.counts)] = histogram.counts
        return [
            {"length": length, "ended": int(both[0, length]), "truncated": int(both[1, length])}
            for length in np.flatnonzero(both.sum(axis=0)).tolist()
        ]


def length_report(
    path: str | os.PathLike[str],
    *,
    tokenizer_sha: str | None = None,
    percentile: float = 99.0,
    u: float = 0.99,
    progress: bool = False,
) -> LengthReport:
    """Read the lengths of a rollout file in one pass, with memory that does not follow its size.

    Args:
        path: rollout file or directory.
        tokenizer_sha: fingerprint the file must have; None accepts any.
        percentile: which length the suggested gamma is made for, (0, 100].
        u: the discounted length u = 1 - gamma**length that this length shall get (LenVM section
            5.3).
        progress: show a bar.
    Raises:
        FileNotFoundError, ValueError: as `RolloutReader`.
    """
    if not 0.0 < percentile <= 100.0:
        raise ValueError(f"percentile must be in (0, 100], got {percentile}: the default is 99.")
    reader = RolloutReader(path, tokenizer_sha=tokenizer_sha)
    sources: dict[str, tuple[LengthHistogram, LengthHistogram]] = {}
    runs, prompts = AdjacentRuns(), DistinctDigests()
    columns = ["prompt_id", "response_ids", "finish_reason", "data_source", "loss_mask"]
    with_context = 0
    for batch in reader.iter_batches(columns, bar="reading lengths" if progress else None):
        lengths = list_lengths(batch.column("response_ids"))
        runs.add(batch.column("prompt_id"), lengths)
        prompts.add(name_digests(batch.column("prompt_id").unique().to_pylist()))
        _count_sources(sources, batch, lengths)
        with_context += int((list_lengths(batch.column("loss_mask")) > 1).sum())
    ended = LengthHistogram.sum_of(*(pair[0] for pair in sources.values()))
    truncated = LengthHistogram.sum_of(*(pair[1] for pair in sources.values()))
    everything = LengthHistogram.sum_of(ended, truncated)
    summary = _summarise("all", ended, truncated)
    within = runs.result()
    covered = within.rows / summary.rows if within else 0.0
    return LengthReport(
        path=str(path),
        prompts=len(prompts),
        overall=summary,
        sources=sorted(
            (_summarise(name, *pair) for name, pair in sources.items()), key=lambda x: -x.rows
        ),
        within_prompt=within if covered >= _GROUPED else None,
        suggested_gamma=gamma_for_length(everything.percentile(percentile), u=u),
        gamma_percentile=percentile,
        gamma_u=u,
        warnings=_warnings(summary, covered, reader, percentile, with_context),
        ended=ended,
        truncated=truncated,
    )


def _count_sources(
    sources: dict[str, tuple[LengthHistogram, LengthHistogram]],
    batch: pa.RecordBatch,
    lengths: np.ndarray,
) -> None:
    """Add the lengths of a batch to the (ended, truncated) histograms of each row's source."""
    truncated = pc.equal(batch.column("finish_reason"), "length").to_numpy(zero_copy_only=False)
    codes = batch.column("data_source").dictionary_encode()
    index = codes.indices.to_numpy()
    for code, name in enumerate(codes.dictionary.to_pylist()):
        if name not in sources and len(sources) >= _MOST_SOURCES:
            name = OTHER_SOURCES
        pair = sources.setdefault(name, (LengthHistogram(), LengthHistogram()))
        mine = index == code
        pair[0].add(lengths[mine & ~truncated])
        pair[1].add(lengths[mine & truncated])


def _summarise(source: str, ended: LengthHistogram, truncated: LengthHistogram) -> Lengths:
    both = LengthHistogram.sum_of(ended, truncated)
    return Lengths(
        source=source,
        rows=both.rows,
        tokens=both.tokens,
        mean=both.mean,
        std=both.std,
        min=both.min,
        percentiles={f"p{q:g}": both.percentile(q) for q in PERCENTILES},
        max=both.max,
        truncated_rows=truncated.rows,
        share_truncated=truncated.rows / both.rows,
    )


def _warnings(
    lengths: Lengths,
    covered: float,
    reader: RolloutReader,
    percentile: float,
    with_context: int,
) -> list[str]:
    found = []
    if lengths.share_truncated > TRUNCATED_WARNING:
        found.append(
            f"{lengths.share_truncated:.1%} of the completions were truncated by the token limit. "
            "Dropping them (truncated=drop) over-represents short responses: train with "
            "truncated=censored or truncated=bootstrap, or sample "
            f"with a larger max_tokens. The p{percentile:g} length, and with it the "
            "suggested gamma, are lower bounds."
        )
    if 0.0 < covered < _GROUPED:
        found.append(
            f"only {covered:.0%} of the completions have one of the same prompt beside them in the "
            "file, so the spread within prompts is not given: neighbours may be alike because they "
            "finished together."
        )
    if with_context:
        found.append(
            f"{with_context:,} completions hold context that the policy did not write (loss_mask): "
            "their lengths count it."
        )
    if reader.leftovers:
        found.append(
            f"{len(reader.leftovers)} unfinished *.tmp shards of a killed writer were ignored."
        )
    return found


def _flat(lengths: Lengths) -> dict[str, Any]:
    row = asdict(lengths)
    percentiles = row.pop("percentiles")
    return {**row, **percentiles}


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="") as sink:
        writer = csv.DictWriter(sink, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if TYPE_CHECKING:
    from rich.console import Group

    from lenvm_rl.rollouts.report import LengthReport


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
    """Histogram of lengths as PNG: ended and truncated rows stacked, percentiles marked."""
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
        style = {"align": "edge", "label": "truncated by the limit", "color": "#d1603d"}
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
        f"{total.share_truncated:.2%} truncated, suggested gamma {report.suggested_gamma:.5g}",
        fontsize=10,
    )
    axes.legend()
    figure.savefig(path, format="png", dpi=150)


def _binned(counts: np.ndarray, width: int) -> np.ndarray:
    """Sum counts of single lengths into `_BINS` bins; the last takes all that is longer."""
    bins = np.minimum(np.arange(len(counts)) // width, _BINS - 1)
    return np.bincount(bins, weights=counts, minlength=_BINS)
