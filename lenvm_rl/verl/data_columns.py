"""Has every prompt of the data the number that a setting reads? Asked before a run starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lenvm_rl.verl.length_terms import positive_numbers


def check_column(
    datasets: Iterable[Any], setting: str, column: str | None, *, highest: int | None = None
) -> None:
    """Refuse data in which a prompt lacks its number.

    Args:
        datasets: verl's data sets.
        setting: the key that names the column.
        column: of the data, or a key of its extra_info; None reads nothing.
        highest: largest number that can be met.
    Raises:
        ValueError: how many have none, and where the first is; the largest, where it is too large.
    """
    if column is None:
        return
    for dataset in datasets:
        numbers = positive_numbers(_column(dataset.dataframe, column), setting, column)
        largest = int(numbers.max()) if len(numbers) else 0
        if highest is not None and largest > highest:
            raise ValueError(
                f"{setting}={column}: a prompt asks for {largest} tokens, more than the {highest} "
                "of data.max_response_length. Raise that, or lower the numbers."
            )


def _column(dataframe: Any, column: str) -> list[Any]:
    """A column of verl's data set, or of its extra_info; a missing one is a column of None."""
    if column in dataframe.column_names:
        return list(dataframe[column])
    if "extra_info" in dataframe.column_names:
        return [(info or {}).get(column) for info in dataframe["extra_info"]]
    return [None] * len(dataframe)
