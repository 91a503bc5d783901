"""Length tokens on the terminal, on a page that opens from disk, and as word clouds.

The clouds are the paper's figure 4 with one change: a word's size is the number of its occurrences
over the threshold, and only words take part whose mean score is over it too and that occur often
enough for a mean; otherwise frequent words that are as often positive as negative fill both clouds.
White space and special tokens are left out; they are in the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lenvm_rl.evals.result import Result
from lenvm_rl.pages.html import render
from lenvm_rl.pages.token_text import visible
from lenvm_rl.rollouts.atomic import replacing

_TITLES = {
    ("positive", "mean"): "Longer, by mean score",
    ("negative", "mean"): "Shorter, by mean score",
    ("positive", "count"): "Longer, by occurrences over the threshold",
    ("negative", "count"): "Shorter, by occurrences over the threshold",
}
_COLOURS = {"positive": "viridis", "negative": "plasma"}
_SCREEN_ROWS = 12
_LARGEST = 360  # pixels: a few words alone do not fill the cloud


def draw(result: Result, out: str | Path, *, font: str | None = None) -> list[Path]:
    """Write length_tokens.html, and a word cloud for each sign that has words.

    Args:
        font: TrueType file of the clouds (Chinese needs one of its own).
    """
    return [_page(result, Path(out)), *_clouds(result, Path(out), font)]


def view(result: Result) -> Group:
    """The leading words of both signs, by mean score and by count."""
    parts: list[Any] = [Text(_summary(result.figures))]
    for by in ("mean", "count"):
        table = Table(title=f"Top words by {'mean score' if by == 'mean' else 'count'}")
        for sign in ("longer", "shorter"):
            table.add_column(sign, no_wrap=True)
            for name in ("mean", "over", "of"):
                table.add_column(name, justify="right")
        sides = [
            [_screen_row(row, sign) for row in _rows(result, sign, by)[:_SCREEN_ROWS]]
            for sign in ("positive", "negative")
        ]
        for left, right in zip_longest(*sides, fillvalue=("",) * 4):
            table.add_row(*left, *right)
        parts.append(table)
    return Group(*parts)


def _screen_row(row: Mapping[str, Any], sign: str) -> tuple[str, ...]:
    return escape(row["text"]), f"{row['mean']:+.3f}", f"{row[sign]:,}", f"{row['count']:,}"


def _page(result: Result, out: Path) -> Path:
    """All four rankings with their examples as `length_tokens.html`; every text is escaped."""
    examples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result.tables["contexts"]:
        examples.setdefault((row["sign"], row["text"]), []).append(row)
    rankings = []
    for (sign, by), title in _TITLES.items():
        rows = [
            {
                **row,
                "mean": f"{row['mean']:+.4f}",
                "sd": f"{row['sd']:.4f}",
                "examples": [_example(e) for e in examples.get((sign, row["text"]), [])],
            }
            for row in _rows(result, sign, by)
        ]
        rankings.append({"title": title, "rows": rows})
    path = out / "length_tokens.html"
    page = render(
        "length_tokens.html",
        styles=["common.css"],
        scripts=[],
        summary=_summary(result.figures),
        rankings=rankings,
    )
    with replacing(path) as file:
        file.write_text(page, encoding="utf-8", errors="replace")
    return path


def _clouds(result: Result, out: Path, font: str | None) -> list[Path]:
    from matplotlib.font_manager import findfont
    from wordcloud import WordCloud

    special = {row["text"] for row in result.tables["tokens"] if row["special"]}
    paths = []
    for sign, colours in _COLOURS.items():
        often = [row for row in result.tables["words"] if _often(row, result.figures)]
        sizes = cloud_sizes(often, sign, result.figures["threshold"], special)
        if not sizes:
            continue
        cloud = WordCloud(
            width=1600,
            height=900,
            background_color="white",
            colormap=colours,
            font_path=font or findfont("DejaVu Sans"),
            prefer_horizontal=1.0,
            max_font_size=_LARGEST,
            max_words=120,
            random_state=0,
        ).generate_from_frequencies(sizes)
        paths.append(out / f"length_tokens_{sign}.png")
        with replacing(paths[-1]) as file:
            cloud.to_image().save(file, format="PNG")
    return paths


def _often(row: Mapping[str, Any], figures: Mapping[str, Any]) -> bool:
    return row["count"] >= figures["min_count"] and row["prompts"] >= figures["min_prompts"]


def cloud_sizes(
    words: Sequence[Mapping[str, Any]], sign: str, threshold: float, special: set[str]
) -> dict[str, float]:
    """Word to its occurrences over the threshold, of the words whose mean is over it too."""
    direction = 1.0 if sign == "positive" else -1.0
    return {
        row["text"]: float(row[sign])
        for row in words
        if direction * row["mean"] > threshold
        and row["text"] not in special
        and any(char.isprintable() and char not in "␣⏎⇥␍⍽" for char in row["text"])
    }


def _rows(result: Result, sign: str, by: str) -> list[dict[str, Any]]:
    return [row for row in result.tables["top"] if row["sign"] == sign and row["by"] == by]


def _example(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "lengths": f"{row['length_before']:.0f} -> {row['length_after']:.0f}",
        "before": row["before"].replace("\n", "⏎"),
        "word": visible(row["word"]),
        "after": row["after"].replace("\n", "⏎"),
    }


def _summary(figures: Mapping[str, Any]) -> str:
    return (
        f"{figures['tokens']:,} tokens of {figures['completions']:,} completions, gamma "
        f"{figures['gamma']:.5f}: {figures['share_positive']:.1%} above {figures['threshold']:g}, "
        f"{figures['share_negative']:.1%} below -{figures['threshold']:g}. "
        f"By mean: words with at least {figures['min_count']} occurrences in at least "
        f"{figures['min_prompts']} prompts."
    )
