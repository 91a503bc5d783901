"""Graders of prompts and completions, chosen by `--grader` or by where the prompts come from."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts.record import truth_text


def graded(name: str, prompts: Sequence[Prompt]) -> tuple[list[Prompt], Any]:
    """The prompts with the ground truths that their grader reads, and the grader or None.

    The grader is a function of (response text, ground truth) that returns whether it is right.

    Args:
        name: `--grader`.
    Raises:
        ValueError: an unknown grader, prompts of sets with different graders, or prompts without
            the fields that theirs needs.
    """
    from reward_fns.graders import GRADERS

    module, colon, function = name.partition(":")
    if colon:
        try:
            return list(prompts), getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"--grader {name!r} cannot be loaded: {error}.") from error
    if name == "auto":
        name = _common(prompts)
    if name == "none":
        return list(prompts), None
    if name not in GRADERS:
        raise ValueError(
            f"--grader {name!r}: give auto, none, one of {', '.join(GRADERS)}, or "
            "package.module:function, a function of (response text, ground truth) that returns "
            "whether it is right."
        )
    return judged(name, prompts)


def judged(name: str, prompts: Sequence[Prompt]) -> tuple[list[Prompt], Any]:
    """The prompts with the ground truths that a grader of `reward_fns` reads, and the grader.

    Raises:
        ValueError: a ground truth that it cannot read, or that passes nonsense, by file and row.
    """
    from reward_fns.graders import check_truth, get_grader

    ready = []
    for prompt in prompts:
        try:
            answer = check_truth(name, prompt.ground_truth, prompt.extra)
        except ValueError as error:
            raise ValueError(f"{prompt.where or prompt.prompt_id}: {error}.") from error
        ready.append(replace(prompt, ground_truth=truth_text(answer)))
    return ready, get_grader(name)


def row_judge(name: str) -> Callable[[str, str, str], bool]:
    """Whether a completion of a rollout file is right, of (data source, text, ground truth).

    `auto` asks the grader that each row's data source tells. Raises as `graded`, row by row, and
    ValueError for a data source that tells none.
    """

    @lru_cache(maxsize=4096)  # the samples of a prompt lie near each other
    def prepared(source: str, truth: str) -> tuple[str | None, Any]:
        asked = Prompt(
            prompt_id=f"a completion of {source!r}",
            messages=[],
            data_source=source,
            ground_truth=truth,
        )
        prompts, grade = graded(name, [asked])
        if grade is None:
            raise ValueError(
                f"--grader {name} grades nothing here (data source {source!r}): name a grader, or "
                "a function as package.module:function."
            )
        return prompts[0].ground_truth, grade

    def judge(source: str, text: str, truth: str) -> bool:
        answer, grade = prepared(source, truth)
        return answer is not None and grade(text, answer) > 0.5

    return judge


def check_truths(prompts: Sequence[Prompt]) -> None:
    """Raise ValueError for ground truths that the data source's grader refuses: how many, and the
    first by file and row."""
    refused = []
    for prompt in prompts:
        name = by_source(prompt.data_source)
        if name != "none" and prompt.ground_truth is not None:
            try:
                judged(name, [prompt])
            except ValueError as error:
                refused.append(error)
    if refused:
        raise ValueError(
            f"{len(refused)} of {len(prompts)} ground truths cannot be graded; the first: "
            f"{refused[0]}"
        ) from refused[0]


def _common(prompts: Sequence[Prompt]) -> str:
    found = sorted({by_source(prompt.data_source) for prompt in prompts})
    if len(found) > 1:
        raise ValueError(
            f"these prompts need different graders ({', '.join(found)}): evaluate one set at a "
            "time, or name one with --grader."
        )
    return found[0] if found else "none"


def by_source(source: str) -> str:
    """Grader of a data source; "none" where nothing tells."""
    from reward_fns.graders import grader_of

    return grader_of(source) or "none"
