#!/usr/bin/env python
"""Give every prompt of a verl data file a random length budget, in the prompt and in a column.

    python recipes/budget/add_budgets.py data/deepscaler/train.parquet data/budgets/train.parquet \\
        --low 500 --high 4000

Every row gets `budget` (response tokens, EOS included) and `extra_info.target` (where
reward_fns.l1_exact looks for it), and its last user message ends with the sentence of --template.
Several budgets for each prompt, for an evaluation: --each 500 1000 2000 4000.
"""

import argparse
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lenvm_rl.rollouts.atomic import replacing

TEMPLATE = " Think for at most {n} tokens."


def with_budget(row: dict, budget: int, template: str) -> dict:
    """A copy of a row that asks for `budget` tokens.

    Raises:
        ValueError: the prompt does not end with a user message.
    """
    prompt = [dict(message) for message in row["prompt"]]
    if not prompt or prompt[-1]["role"] != "user":
        raise ValueError(
            f"the prompt of row {row.get('extra_info')} does not end with a user message, so "
            "there is no place for its budget. Give verl's chat format."
        )
    prompt[-1]["content"] += template.format(n=budget)
    info = {**(row.get("extra_info") or {}), "target": budget}
    return {**row, "prompt": prompt, "extra_info": info, "budget": budget}


def budget_rows(rows: list[dict], given: argparse.Namespace) -> list[dict]:
    """All rows with their budgets, as the command line says."""
    if given.each:
        return [with_budget(row, n, given.template) for row in rows for n in given.each]
    rng = random.Random(given.seed)
    return [with_budget(row, rng.randint(given.low, given.high), given.template) for row in rows]


def main() -> None:
    """Command line, see the module."""
    parser = argparse.ArgumentParser(description="Random length budgets for a verl data file.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--low", type=int, default=500)
    parser.add_argument("--high", type=int, default=4000)
    parser.add_argument("--each", type=int, nargs="+", help="these budgets for every prompt")
    parser.add_argument("--template", default=TEMPLATE, help="{n} stands for the budget")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not given.each and not 0 < given.low <= given.high:
        parser.error(f"--low {given.low} --high {given.high}: need 0 < low <= high")
    rows = budget_rows(pq.read_table(given.source).to_pylist(), given)
    with replacing(given.target) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    print(f"{len(rows)} rows in {given.target}")


if __name__ == "__main__":
    main()
