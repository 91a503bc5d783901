"""Names of the command line: what `demo`, `demo:300` and `gsm8k@hub:100` stand for.

The shipped policy, problems of its task, and prompt sets (`rollouts.prompt_sets.name`).
"""

from __future__ import annotations

from pathlib import Path

from lenvm_rl.demo import policy_path, task
from lenvm_rl.prompts.prompt import Prompt, read_prompts
from lenvm_rl.prompts.sets import PROMPT_SETS
from lenvm_rl.prompts.sets.load import SYNTAX, load_named_set, parse_set_name


def resolve_policy(name: str | Path) -> str:
    """`demo` is the shipped policy; anything else is a directory or hub name as it stands."""
    return str(policy_path()) if str(name) == "demo" else str(name)


def demo_prompts(count: int, *, seed: int) -> list[Prompt]:
    """`count` different problems of the demo task; ids name the seed, so files can be merged."""
    return [
        Prompt(
            prompt_id=f"demo-{seed}-{number}",
            messages=task.messages(problem),
            data_source=f"demo/{problem.operands:02d}-operands",
            ground_truth=str(problem.answer),
        )
        for number, problem in enumerate(task.sample_problems(count, seed=seed))
    ]


def resolve_prompts(name: str, *, seed: int, limit: int | None = None) -> list[Prompt]:
    """Prompts of `demo:COUNT`, of a set `SET[/SPLIT][@SOURCE][:COUNT]`, or of a prompt file.

    Args:
        seed: of the demo's problems, and of what is drawn from a set.
        limit: maximum number of prompts.
    Raises:
        ValueError: COUNT is not a positive number, nothing has that name, or what is there lacks
            something.
    """
    kind, colon, count = name.partition(":")
    if kind == "demo" and colon:
        if not count.isdecimal() or int(count) < 1:
            raise ValueError(f"{name!r}: write demo:COUNT with a positive number, e.g. demo:300.")
        return demo_prompts(min(int(count), limit or int(count)), seed=seed)
    chosen = parse_set_name(name)
    if chosen is not None:
        return load_named_set(chosen, seed=seed, limit=limit)
    if not Path(name).exists() and ("@" in name or not Path(name).suffix):
        raise ValueError(
            f"{name!r} is no file of prompts and no prompt set: write demo:COUNT, a .jsonl or "
            f".parquet file, or {SYNTAX} with one of {', '.join(PROMPT_SETS)}."
        )
    return read_prompts(Path(name), limit=limit)
