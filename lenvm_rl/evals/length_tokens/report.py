"""From tallies to tables: which words lead, by their mean score and by their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lenvm_rl.evals.length_tokens.tally import Tally
from lenvm_rl.evals.result import finite, save_results

if TYPE_CHECKING:
    from rich.console import Group

    from lenvm_rl.evals.length_tokens.evaluate import LengthTokenSettings


HEADLINE = (
    ("top.positive_by_mean", "longer after", "words"),
    ("top.negative_by_mean", "shorter after", "words"),
    ("share_positive", "tokens over the threshold", ".1%"),
    ("share_negative", "below it", ".1%"),
)


@dataclass(frozen=True, eq=False)
class LengthTokenReport:
    """Figures and tables of one analysis."""

    figures: dict[str, Any]
    """Counts, settings, and the leading words of every ranking."""
    tables: dict[str, list[dict[str, Any]]]
    """words and tokens (all of them), top (ranked words) and contexts (their examples)."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def table(self) -> Group:
        """The report on one screen, to print with rich."""
        from lenvm_rl.evals.length_tokens.draw import length_tokens_view

        return length_tokens_view(self)

    def save(self, out: str | Path) -> list[Path]:
        """Write length_tokens.json, .jsonl, CSVs, .html, and a word cloud for each sign."""
        from lenvm_rl.evals.length_tokens.draw import draw_clouds, write_page

        paths = save_results(out, "length_tokens", self.figures, self.tables, HEADLINE)
        return [*paths, write_page(self, Path(out)), *draw_clouds(self, Path(out))]


def make_report(
    tokens: dict[int, Tally],
    words: dict[str, Tally],
    special: set[int],
    completions: int,
    cut: int,
    gamma: float,
    settings: LengthTokenSettings,
) -> LengthTokenReport:
    """The report of all tallies; special tokens are counted and not ranked."""
    ends = {tally.text for key, tally in tokens.items() if key in special}
    table = sorted((t.row() for t in words.values()), key=lambda row: (-row["count"], row["text"]))
    ranked = [row for row in table if row["text"] not in ends]
    top, contexts = [], []
    for sign in ("positive", "negative"):
        for by, rows in _rankings(ranked, sign, settings).items():
            for rank, row in enumerate(rows, 1):
                top.append({"sign": sign, "by": by, "rank": rank, **row})
        for text in dict.fromkeys(row["text"] for row in top if row["sign"] == sign):
            examples = sorted(words[text].examples[sign], key=lambda e: -abs(e["score"]))
            contexts += [{"sign": sign, "text": text, **example} for example in examples]
    figures = {
        "completions": completions,
        "share_cut": cut / completions,
        "gamma": gamma,
        "threshold": settings.threshold,
        "min_count": settings.min_count,
        "min_prompts": settings.min_prompts,
        "tokens": sum(tally.count for tally in tokens.values()),
        "share_positive": _share(tokens.values(), "positive"),
        "share_negative": _share(tokens.values(), "negative"),
        "different_tokens": len(tokens),
        "different_words": len(words),
        "top": {
            f"{sign}_by_{by}": [
                row["text"] for row in top if row["sign"] == sign and row["by"] == by
            ]
            for sign in ("positive", "negative")
            for by in ("mean", "count")
        },
    }
    by_token = [
        {"token_id": key, "special": key in special, **tally.row()}
        for key, tally in sorted(tokens.items(), key=lambda item: (-item[1].count, item[0]))
    ]
    tables = {"top": top, "words": table, "tokens": by_token, "contexts": contexts}
    return LengthTokenReport(figures, tables)


def _rankings(
    rows: Sequence[dict[str, Any]], sign: str, settings: LengthTokenSettings
) -> dict[str, list[dict[str, Any]]]:
    """The top of the words, by mean score and by the number over the threshold."""
    direction = 1.0 if sign == "positive" else -1.0
    often = [
        row
        for row in rows
        if row["count"] >= settings.min_count
        and row["prompts"] >= settings.min_prompts
        and direction * row["mean"] > settings.threshold
    ]
    by_mean = sorted(often, key=lambda row: (-direction * row["mean"], row["text"]))
    by_count = sorted((row for row in rows if row[sign]), key=lambda row: (-row[sign], row["text"]))
    return {"mean": by_mean[: settings.top], "count": by_count[: settings.top]}


def _share(tallies: Iterable[Tally], sign: str) -> float:
    pairs = [(getattr(tally, sign), tally.count) for tally in tallies]
    return sum(n for n, _ in pairs) / max(1, sum(count for _, count in pairs))
