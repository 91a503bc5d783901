"""Names of the command line: what `demo`, `demo:300` and `gsm8k@hub:100` stand for.

The shipped policy, problems of its task, and prompt sets (`rollouts.prompt_sets.name`).
"""

from __future__ import annotations

from pathlib import Path

from lenvm_rl.demo import policy_path, task
from lenvm_rl.prompts.prompt import Prompt, read_prompts
from lenvm_rl.prompts.sets import PROMPT_SETS
from lenvm_rl.prompts.sets.load import SYNTAX, load_named_set, parse_set_name

DEMO_SETS = {"demo": "sums", "demo-products": "products"}
"""names of prompts, and the family of problems that each stands for"""
NO_THINKING_EVERY = 12
"""demo prompts from one that is asked without thinking to the next"""


def resolve_policy(name: str | Path) -> str:
    """`demo` is the shipped policy; anything else is a directory or hub name as it stands."""
    return str(policy_path()) if str(name) == "demo" else str(name)


def demo_prompts(count: int, *, seed: int, family: str = "sums") -> list[Prompt]:
    """`count` different problems of the demo task; ids name the seed, so files can be merged.

    One in `NO_THINKING_EVERY` is asked without thinking. The source is the level of difficulty.
    """
    prompts = []
    for number, problem in enumerate(task.sample_problems(count, seed=seed, family=family)):
        thinking = number % NO_THINKING_EVERY != NO_THINKING_EVERY - 1
        name = "demo" if family == "sums" else f"demo-{family}"
        prompts.append(
            Prompt(
                prompt_id=f"{name}-{seed}-{number}",
                messages=task.messages(problem, thinking=thinking),
                data_source=f"{name}/{problem.level if thinking else 'no-thinking'}",
                ground_truth=str(problem.answer),
            )
        )
    return prompts


def resolve_prompts(name: str, *, seed: int, limit: int | None = None) -> list[Prompt]:
    """Prompts of `demo:COUNT`, of a set `SET[/SPLIT][@SOURCE][:COUNT]`, or of a prompt file.

    `demo-products:COUNT` is the demo's second family of problems.

    Args:
        seed: of the demo's problems, and of what is drawn from a set.
        limit: maximum number of prompts.
    Raises:
        ValueError: COUNT is not a positive number, nothing has that name, or what is there lacks
            something.
    """
    kind, colon, count = name.partition(":")
    if kind in DEMO_SETS and colon:
        if not count.isdecimal() or int(count) < 1:
            raise ValueError(f"{name!r}: write {kind}:COUNT with a positive number: {kind}:300.")
        number = min(int(count), limit or int(count))
        return demo_prompts(number, seed=seed, family=DEMO_SETS[kind])
    chosen = parse_set_name(name)
    if chosen is not None:
        return load_named_set(chosen, seed=seed, limit=limit)
    if not Path(name).exists() and ("@" in name or not Path(name).suffix):
        raise ValueError(
            f"{name!r} is no file of prompts and no prompt set: write demo:COUNT, a .jsonl or "
            f".parquet file, or {SYNTAX} with one of {', '.join(PROMPT_SETS)}."
        )
    return read_prompts(Path(name), limit=limit)
