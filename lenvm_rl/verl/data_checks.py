"""Checks of the data, before a run starts, against what the settings take it for.

Numbers per prompt, tools, pictures, and whether the run's reward function can grade every prompt.
Known are the graders and sample rewards of `reward_fns`; other reward functions are not asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lenvm_rl.verl.pretrain.settings import TOOL_AGENT
from reward_fns import GRADERS, LENGTH_REWARDS
from reward_fns.graders import check_truth, named_grader


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


MOST_RUN = 500
"""Ground truths of `code` whose statements are run before a run starts (a tenth of a second each);
the grader itself refuses what it meets later."""


def check_truths(datasets: Iterable[Any], config: DictConfig) -> None:
    """Refuse data whose ground truths cannot be graded, or that programs without a value pass.

    Args:
        datasets: verl's data sets.
        config: of the run; its reward.custom_reward_function is asked.
    Raises:
        ValueError: how many cannot, and why the first cannot.
    """
    function = config.reward.get("custom_reward_function") or {}
    module = _module(function.get("path") or "")
    grader = {path: name for name, path in GRADERS.items()}.get(module)
    if grader is None and module.rpartition(".")[2] in LENGTH_REWARDS:
        grader = (function.get("reward_kwargs") or {}).get("grader", "auto")
    if grader is None:
        return
    for dataset in datasets:
        _check(dataset.dataframe, grader)


def _module(path: str) -> str:
    """Module of this package that verl's path of a reward function names; empty for others."""
    if path.startswith("pkg://"):
        return path.removeprefix("pkg://")
    file = Path(path)
    return f"reward_fns.{file.stem}" if file.parent.name == "reward_fns" else ""


def _check(dataframe: Any, grader: str) -> None:
    wanted = ("data_source", "reward_model", "extra_info")
    rows = dataframe.select_columns([name for name in wanted if name in dataframe.column_names])
    refused: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            name = named_grader(grader, row.get("data_source") or "")
            truth = row["reward_model"]["ground_truth"]
            run = name != "code" or number <= MOST_RUN
            if check_truth(name, truth, row.get("extra_info"), run=run) is None:
                raise KeyError
        except (ValueError, KeyError, TypeError) as error:
            why = error if isinstance(error, ValueError) else "no reward_model.ground_truth"
            refused.append(f"row {number}: {why}")
    if refused:
        raise ValueError(
            f"{len(refused)} of {len(rows)} prompts of the data cannot be graded; the first, "
            f"{refused[0]}. `lenvm prompts` writes files that can."
        )
