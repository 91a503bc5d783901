"""What do `demo` and `demo:300` stand for on the command line? The shipped policy and its task."""

from __future__ import annotations

from pathlib import Path

from lenvm_rl.demo import policy_path, task
from lenvm_rl.rollouts.prompts import Prompt, read_prompts


def resolve_policy(name: str) -> str:
    """`demo` is the shipped policy; anything else is a directory or hub name as it stands."""
    return str(policy_path()) if name == "demo" else name


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
    """Prompts of `demo:COUNT` (problems drawn with `seed`), or of a .jsonl or .parquet file.

    Raises:
        ValueError: COUNT is not a positive number, or the file is missing or malformed.
    """
    kind, colon, count = name.partition(":")
    if kind != "demo" or not colon:
        return read_prompts(Path(name), limit=limit)
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(f"{name!r}: write demo:COUNT with a positive number, e.g. demo:300.")
    return demo_prompts(min(int(count), limit or int(count)), seed=seed)
