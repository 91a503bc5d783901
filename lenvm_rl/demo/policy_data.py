"""verl's data files for training the shipped policy: problems of its task, with budgets or without.

    python -m lenvm_rl.demo.policy_data runs/rl --train 4000 --val 200 --seed 1
    python -m lenvm_rl.demo.policy_data runs/budget --train 4000 --val 200 --budgets 24 160

writes DIR/train.parquet and DIR/val.parquet. Training and validation problems are different ones.

With budgets, a problem is asked as `12 ; 3 + 4 = ?`: twelve units of 8 tokens, in words that the
policy's vocabulary has. It has never seen them and learns in training what they mean. The budget
in tokens is the column `budget` (and `extra_info.target`, where length rewards look for it).
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

UNIT = 8
"""Tokens per unit of a budget; the vocabulary counts to 99 of them."""


def budget_messages(problem: task.Problem, budget: int) -> list[dict[str, str]]:
    """The problem with its budget in front, as chat messages.

    Args:
        budget: response tokens, EOS included; a multiple of `UNIT` up to 99 units.
    Raises:
        ValueError: a budget that the vocabulary cannot say.
    """
    if budget % UNIT or not 0 < budget <= 99 * UNIT:
        raise ValueError(
            f"budget {budget} cannot be asked for: it must be a multiple of {UNIT} from {UNIT} to "
            f"{99 * UNIT} tokens"
        )
    return [{"role": "user", "content": f"{budget // UNIT} ; {problem.text}"}]


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
        row: dict[str, Any] = {
            "data_source": "demo",
            "prompt": task.messages(problem),
            "reward_model": {"style": "rule", "ground_truth": str(problem.answer)},
            "extra_info": {"index": index, "operands": problem.operands},
        }
        if budgets is not None:
            row["prompt"] = budget_messages(problem, budgets[index])
            row["budget"] = budgets[index]
            row["extra_info"]["target"] = budgets[index]
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
    """Write train.parquet and val.parquet.

    Args:
        train, val: numbers of problems, all different.
        seed: of the problems and budgets.
        budgets: (low, high) tokens; every problem gets a random multiple of `UNIT` within.
    Raises:
        ValueError: no multiple of `UNIT` lies within, or there are not so many problems.
    """
    problems = task.sample_problems(train + val, seed=seed)
    drawn = None
    if budgets is not None:
        choices = range(-(-budgets[0] // UNIT) * UNIT, budgets[1] + 1, UNIT)
        if not choices:
            raise ValueError(f"budgets {budgets}: no multiple of {UNIT} tokens lies within.")
        rng = random.Random(f"lenvm-budget-{seed}")
        drawn = [rng.choice(choices) for _ in problems]
    rows = policy_rows(problems, budgets=drawn)
    for name, part in (("train", rows[:train]), ("val", rows[train:])):
        with replacing(directory / f"{name}.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(part), temporary)


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
