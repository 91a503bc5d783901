"""Has every prompt of the data the number that a setting reads? Asked before a run starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lenvm_rl.verl.length_terms import positive_numbers


def check_column(datasets: Iterable[Any], setting: str, column: str | None) -> None:
    """Refuse data in which a prompt lacks its number.

    Args:
        datasets: verl's data sets.
        setting: the key that names the column.
        column: of the data, or a key of its extra_info; None reads nothing.
    Raises:
        ValueError: how many have none, and where the first is.
    """
    if column is None:
        return
    for dataset in datasets:
        positive_numbers(_column(dataset.dataframe, column), setting, column)


def _column(dataframe: Any, column: str) -> list[Any]:
    """A column of verl's data set, or of its extra_info; a missing one is a column of None."""
    if column in dataframe.column_names:
        return list(dataframe[column])
    if "extra_info" in dataframe.column_names:
        return [(info or {}).get(column) for info in dataframe["extra_info"]]
    return [None] * len(dataframe)
