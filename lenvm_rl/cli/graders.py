"""Which grader judges these prompts? Chosen by `--grader`, or by where the prompts come from."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from lenvm_rl.rollouts.prompts import Prompt

GraderOption = Annotated[
    str,
    typer.Option(help="auto (by data source), none, a name, or package.module:function."),
]
# data sources of verl's examples and of other files -> grader; prompt sets name theirs before "/"
_BY_NAME = {"gsm8k": "gsm8k", "math500": "math", "aime": "math", "amc23": "math"}


def graded(name: str, prompts: Sequence[Prompt]) -> tuple[list[Prompt], Any]:
    """The prompts with the ground truths that their grader reads, and the grader or None.

    The grader is a function of (response text, ground truth) that returns whether it is right.

    Args:
        name: `--grader`.
    Raises:
        ValueError: an unknown grader, prompts of sets with different graders, or prompts without
            the fields that theirs needs.
    """
    from reward_fns.graders import GRADERS, get_grader

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
    if name == "mathvista":
        prompts = [replace(prompt, ground_truth=json.dumps(prompt.extra)) for prompt in prompts]
    grade = get_grader(name)
    for prompt in prompts:
        if prompt.ground_truth is not None:
            grade("", prompt.ground_truth)  # a truth that cannot be read is refused before sampling
    return list(prompts), grade


def _common(prompts: Sequence[Prompt]) -> str:
    found = sorted({_by_source(prompt.data_source) for prompt in prompts})
    if len(found) > 1:
        raise ValueError(
            f"these prompts need different graders ({', '.join(found)}): evaluate one set at a "
            "time, or name one with --grader."
        )
    return found[0] if found else "none"


def _by_source(source: str) -> str:
    """Grader of a data source; "none" where nothing tells."""
    from reward_fns.graders import GRADERS

    if "mathvista" in source.lower():
        return "mathvista"
    first = source.partition("/")[0]
    if first in GRADERS:
        return first
    plain = "".join(c for c in source.lower() if c.isalnum())
    return next((grader for part, grader in _BY_NAME.items() if part in plain), "none")
