"""Is the data what settings take it for? Numbers, tools, pictures; asked before a run starts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lenvm_rl.verl.pretrain.settings import TOOL_AGENT


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


def check_own_words(datasets: Iterable[Any], setting: str) -> None:
    """Refuse prompts that ask for verl's agent loop with tools.

    Raises:
        ValueError: how many do; `setting` is what takes the policy's own words alone.
    """
    for dataset in datasets:
        names = _column(dataset.dataframe, "agent_name")
        if asked := names.count(TOOL_AGENT):
            raise ValueError(
                f"{setting} takes responses that are the policy's own words, but {asked} of "
                f"{len(names)} prompts have agent_name={TOOL_AGENT}, which puts a tool's answers "
                "among them. Drop that column, or do without the setting."
            )


def check_text_only(datasets: Iterable[Any], data: DictConfig) -> None:
    """Refuse prompts with pictures, video or sound: a LenVM reads tokens alone.

    Args:
        datasets: verl's data sets.
        data: verl's data settings, which name the columns.
    Raises:
        ValueError: a column that is not empty.
    """
    for dataset in datasets:
        frame = dataset.dataframe
        for kind in ("image", "video", "audio"):
            column = data.get(f"{kind}_key", f"{kind}s")
            cells = frame[column] if column in frame.column_names else []
            first = next((row for row, cell in enumerate(cells) if not _empty(cell)), None)
            if first is not None:
                raise ValueError(
                    f"data.{kind}_key={column}: prompts have {kind}s (the first in row {first} of "
                    f"{len(frame)}), which a LenVM would read as placeholder tokens without a "
                    "content. Train on text, or without a length critic (lenvm.checkpoint=null "
                    "lenvm.use=none)."
                )


def _empty(cell: Any) -> bool:
    return cell is None or (hasattr(cell, "__len__") and len(cell) == 0)


def _column(dataframe: Any, column: str) -> list[Any]:
    """A column of verl's data set, or of its extra_info; a missing one is a column of None."""
    if column in dataframe.column_names:
        return list(dataframe[column])
    if "extra_info" in dataframe.column_names:
        return [(info or {}).get(column) for info in dataframe["extra_info"]]
    return [None] * len(dataframe)


def budgets_of(cells: list[object], column: str) -> Tensor:
    """[B] budgets in tokens from a column of the data; raises as `positive_numbers` does."""
    return positive_numbers(cells, "lenvm.budget_column", column)


def positive_numbers(cells: list[object], setting: str, column: str) -> Tensor:
    """[B] token counts from a column of the data that `setting` names.

    Raises:
        ValueError: missing or not positive, with how many and where the first is.
    """
    wrong = [i for i, cell in enumerate(cells) if not _is_budget(cell)]
    if wrong:
        raise ValueError(
            f"{setting}={column}: {len(wrong)} of {len(cells)} prompts have no budget "
            f"(row {wrong[0]}: {cells[wrong[0]]!r}). Give every prompt a number of response tokens "
            "above 0, or leave those prompts out."
        )
    return torch.tensor([float(cell) for cell in cells])  # type: ignore[arg-type]


def _is_budget(cell: object) -> bool:
    if isinstance(cell, bool) or not hasattr(cell, "__float__"):
        return False
    return 0.0 < float(cell) < float("inf")  # type: ignore[arg-type]
