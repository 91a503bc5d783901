"""Which few numbers of an evaluation stand at the top of a report?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_MOST = 4

# evaluation -> (path of the figure, label, format); `%` shows shares as percent, `words` a list
_KNOWN: dict[str, tuple[tuple[str, str, str], ...]] = {
    "prediction": (
        ("mre_s0", "mean relative error at the prompt", ".3f"),
        ("mre_noise_floor", "noise floor", ".3f"),
        ("kendall_tau_s0", "Kendall tau", ".3f"),
        ("r2_monte_carlo", "R2 inside responses", ".3f"),
    ),
    "tradeoff": (
        ("unguided_accuracy", "accuracy unguided", ".1%"),
        ("unguided_length", "tokens unguided", ".0f"),
        ("accuracy_kept_there", "kept where a hard budget keeps half", ".1%"),
        ("largest_gap_to_budget", "largest lead over the hard budget", ".1%"),
    ),
    "control": (
        ("equal_guided_score", "equal: score", ".1f"),
        ("at_most_guided_score", "at most: score", ".1f"),
        ("at_least_guided_score", "at least: score", ".1f"),
        ("equal_guided_deviation", "equal: deviation, %", ".1f"),
    ),
    "lifebench": (
        ("equal_guided_score", "equal: score", ".1f"),
        ("equal_unguided_score", "equal unguided: score", ".1f"),
        ("at_most_guided_score", "at most: score", ".1f"),
        ("at_least_guided_score", "at least: score", ".1f"),
    ),
    "length_tokens": (
        ("top.positive_by_mean", "longer after", "words"),
        ("top.negative_by_mean", "shorter after", "words"),
        ("share_positive", "tokens over the threshold", ".1%"),
        ("share_negative", "below it", ".1%"),
    ),
    "scheduling": (
        ("share_predicted_lenvm", "way from FCFS to perfect knowledge", ".1%"),
        ("share_remaining_lenvm", "same, by remaining length", ".1%"),
        ("load", "at load", ".2f"),
        ("completions", "completions", ",d"),
    ),
    "scaling": (("runs", "runs", "d"), ("run_seconds", "seconds of training", ",.0f")),
    "ablation": (("runs", "runs", "d"), ("run_seconds", "seconds of training", ",.0f")),
    "lengths": (
        ("rows", "completions", ",d"),
        ("mean", "mean length, tokens", ".1f"),
        ("share_cut", "cut by the limit", ".2%"),
        ("suggested_gamma", "gamma that suits", ".5f"),
    ),
}


def headlines(name: str, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, number as text), at most four; for an unknown evaluation its first numbers."""
    flat = flatten(figures)
    known = [
        (label, text)
        for path, label, form in _KNOWN.get(name, ())
        if (text := _written(flat.get(path), form)) is not None
    ]
    if known:
        return known
    numbers = [(key, _written(value, ".4g")) for key, value in flat.items()]
    return [(key.replace("_", " "), text) for key, text in numbers if text is not None][:_MOST]


def flatten(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Objects within objects as `outer.inner`; lists stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _written(value: Any, form: str) -> str | None:
    """The value as text; None where it is missing or of another kind than expected."""
    if form == "words":
        fits = isinstance(value, list) and value and all(isinstance(x, str) for x in value)
        return ", ".join(value[:4]) if fits else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return format(int(value) if form.endswith("d") else value, form)
