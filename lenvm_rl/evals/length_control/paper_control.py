"""What does the paper report for length control (table 2) and for the trade-off (figure 2)?

Figure 2 has no table: its points are read off the vector paths of the PDF. Lengths there are mean
tokens, accuracies Pass@1.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Table2Row(NamedTuple):
    """One line of table 2: LIFEBench in tokens, targets 32 to 1,024."""

    model: str
    deviation: float
    """Of Equal To, mean |d| in percent."""
    equal: float
    at_most: float
    at_least: float


TABLE_2 = (
    Table2Row("GPT-4o", 74, 35.5, 77.9, 98.5),
    Table2Row("GPT-5.4", 135, 37.4, 65.4, 98.9),
    Table2Row("GPT-5.4-thinking", 131, 47.8, 72.7, 98.9),
    Table2Row("Claude-Sonnet-4-6", 105, 34.1, 62.9, 100.0),
    Table2Row("Claude-Sonnet-4-6-thinking", 124, 51.3, 69.3, 100.0),
    Table2Row("Claude-Opus-4-6", 66, 35.5, 51.5, 100.0),
    Table2Row("Claude-Opus-4-6-thinking", 87, 53.2, 67.4, 100.0),
    Table2Row("Gemini-3-Flash-Preview", 123, 40.3, 57.3, 99.6),
    Table2Row("Gemini-3.1-Pro-Preview", 91, 49.3, 70.7, 100.0),
    Table2Row("Qwen2.5-3B", 83, 25.6, 92.1, 94.6),
    Table2Row("Qwen2.5-3B + LenVM 1.5B", 56, 62.6, 93.0, 93.1),
    Table2Row("Qwen2.5-7B", 71, 30.9, 98.5, 89.1),
    Table2Row("Qwen2.5-7B + LenVM 1.5B", 44, 64.8, 96.1, 99.5),
    Table2Row("Qwen3-30B-A3B", 90, 36.8, 87.0, 99.3),
    Table2Row("Qwen3-30B-A3B + LenVM 1.7B", 57, 67.2, 99.4, 99.8),
)


class Panel(NamedTuple):
    """One panel of figure 2; every point is (its label, mean tokens, Pass@1)."""

    models: str
    guided: tuple[tuple[int, float, float], ...]
    """Labelled by beta."""
    budget: tuple[tuple[int, float, float], ...]
    """Labelled by the hard budget B; unlimited is the beta 0 of `guided`."""


FIGURE_2 = {
    "gsm8k": Panel(
        "Qwen2.5-3B + LenVM 1.5B",
        (
            (-1000, 201.1, 0.628),
            (-100, 263.4, 0.761),
            (-50, 296.0, 0.801),
            (-20, 320.9, 0.811),
            (0, 341.0, 0.816),
        ),
        (
            (200, 199.0, 0.053),
            (250, 242.8, 0.191),
            (300, 277.7, 0.363),
            (350, 302.2, 0.545),
            (400, 317.5, 0.671),
            (450, 326.5, 0.738),
        ),
    ),
    "math500": Panel(
        "Qwen2.5-7B + LenVM 1.5B",
        (
            (-1000, 324.7, 0.406),
            (-100, 417.7, 0.496),
            (-50, 459.3, 0.512),
            (-20, 502.2, 0.523),
            (0, 547.0, 0.533),
        ),
        (
            (300, 291.7, 0.118),
            (400, 363.4, 0.260),
            (500, 415.1, 0.355),
            (600, 453.9, 0.413),
            (800, 505.1, 0.488),
        ),
    ),
    "mathvista": Panel(
        "Qwen2.5-VL-7B + LenVM VL-3B",
        (
            (-1000, 151.1, 0.234),
            (-100, 193.0, 0.264),
            (-50, 210.5, 0.269),
            (-20, 230.8, 0.272),
            (0, 245.8, 0.274),
        ),
        (
            (150, 142.1, 0.075),
            (200, 175.0, 0.172),
            (300, 212.9, 0.237),
            (400, 232.0, 0.258),
        ),
    ),
}


def paper_panel(sources: set[str]) -> Panel | None:
    """Figure 2's panel of a set of `data_source`s; None unless they all name one of its sets."""
    names = {"".join(c for c in source.lower() if c.isalnum()) for source in sources}
    for key, panel in FIGURE_2.items():
        if names and all(key in name for name in names):
            return panel
    return None


def table_2_rows() -> list[dict[str, Any]]:
    """Table 2 as rows of a results table; source is "paper"."""
    return [{"source": "paper", **row._asdict()} for row in TABLE_2]
