"""verl's data files for training the shipped policy: problems of its task, with budgets or without.

    python -m lenvm_rl.demo.policy_data runs/rl --train 4000 --val 200 --seed 1
    python -m lenvm_rl.demo.policy_data runs/budget --train 4000 --val 200 --budgets 20 200

writes DIR/train.parquet and DIR/val.parquet, sums, all different, and DIR/transfer.parquet with as
many products as there are validation problems: a family that training never sees.

With budgets, a problem is asked as `about 120 tokens: 347 + 85 = ?`. The policy has read such words
and does not heed them; it learns in training what they mean. The budget in tokens is the column
`budget` (and `extra_info.target`, where length rewards look for it).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lenvm_rl.demo import task
from lenvm_rl.rollouts.atomic import replacing


def policy_rows(
    problems: Sequence[task.Problem], *, budgets: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Rows of a verl data file.

    Args:
        problems: of the demo task.
        budgets: one per problem, in tokens; None asks without.
    """
    rows = []
    for index, problem in enumerate(problems):
        budget = None if budgets is None else budgets[index]
        row: dict[str, Any] = {
            "data_source": "demo",
            "prompt": task.messages(problem, tokens=budget),
            "reward_model": {"style": "rule", "ground_truth": str(problem.answer)},
            "extra_info": {"index": index, "family": problem.family, "level": problem.level},
        }
        if budget is not None:
            row["budget"] = row["extra_info"]["target"] = budget
        rows.append(row)
    return rows


def write_policy_data(
    directory: Path,
    *,
    train: int,
    val: int,
    seed: int,
    budgets: tuple[int, int] | None = None,
) -> None:
    """Write train.parquet, val.parquet and transfer.parquet.

    Args:
        train, val: numbers of problems, all different; transfer has as many as val.
        seed: of the problems and budgets.
        budgets: (low, high) tokens; every problem gets a random number within.
    Raises:
        ValueError: no number of at least 1 lies within, or there are not so many problems.
    """
    sums = task.sample_problems(train + val, seed=seed)
    products = task.sample_problems(val, seed=seed, family="products")
    if budgets is not None and not 0 < budgets[0] <= budgets[1]:
        raise ValueError(f"budgets {budgets}: pass two numbers of tokens, the lower one first.")
    rng = random.Random(f"lenvm-budget-{seed}")
    for name, part in (("train", sums[:train]), ("val", sums[train:]), ("transfer", products)):
        drawn = None if budgets is None else [rng.randint(*budgets) for _ in part]
        rows = policy_rows(part, budgets=drawn)
        with replacing(directory / f"{name}.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(rows), temporary)


def main() -> None:
    """Command line, see the module."""
    parser = argparse.ArgumentParser(description="Data files for training the shipped policy.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--train", type=int, default=4000, help="training problems")
    parser.add_argument("--val", type=int, default=200, help="validation problems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--budgets", type=int, nargs=2, metavar=("LOW", "HIGH"), help="random budgets, in tokens"
    )
    given = parser.parse_args()
    write_policy_data(
        given.directory,
        train=given.train,
        val=given.val,
        seed=given.seed,
        budgets=tuple(given.budgets) if given.budgets else None,
    )


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
