"""Can the run's reward function grade every prompt of the data? Asked before a run starts.

Known are the graders and sample rewards of `reward_fns`; other reward functions are not asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from reward_fns import GRADERS, LENGTH_REWARDS
from reward_fns.graders import check_truth, named_grader

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
