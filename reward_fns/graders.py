"""Graders by name, which of them judges a prompt, and the way verl calls them.

Each is a file with `grade(text, answer) -> float` in [0, 1]. A grader is imported when it is first
asked for, so that the ones with a requirement of their own (`math` needs math-verify) cost nothing
to those who do not use them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

GRADERS = {
    "demo": "reward_fns.demo",
    "gsm8k": "reward_fns.gsm8k",
    "math": "reward_fns.math_answer",
    "multiple_choice": "reward_fns.multiple_choice",
    "mathvista": "reward_fns.mathvista",
    "code": "reward_fns.code_tests",
    "ifeval_rules": "reward_fns.ifeval_rules",
}
# parts of data sources of verl's examples and of other files, letters and digits alone -> grader
_BY_NAME = {
    "demoproducts": "demo",
    "gsm8k": "gsm8k",
    "math500": "math",
    "mathlighteval": "math",
    "lightevalmath": "math",
    "aime": "math",
    "amc23": "math",
    "humaneval": "code",
    "mbpp": "code",
}


def get_grader(name: str) -> Callable[[Any, Any], float]:
    """The `grade` function of a grader.

    Raises:
        ValueError: no grader has that name.
        ImportError: its requirement is not installed.
    """
    if name not in GRADERS:
        raise ValueError(f"there is no grader {name!r}: choose one of {', '.join(GRADERS)}")
    return importlib.import_module(GRADERS[name]).grade


def grader_of(data_source: str) -> str | None:
    """The grader that a data source tells: prompt sets begin with its name; None if none does."""
    if "mathvista" in data_source.lower():
        return "mathvista"
    first = data_source.partition("/")[0]
    if first in GRADERS:
        return first
    plain = "".join(c for c in data_source.lower() if c.isalnum())
    return next((grader for part, grader in _BY_NAME.items() if part in plain), None)


def named_grader(name: str | None, data_source: str) -> str:
    """The grader that a setting names, or with `auto` the one that the data source tells.

    Raises:
        ValueError: neither does.
    """
    found = grader_of(data_source) if name in ("auto", None) else name
    if found is None:
        raise ValueError(
            f"no grader is named, and data_source {data_source!r} tells none: set "
            f"reward.custom_reward_function.reward_kwargs.grader to one of {', '.join(GRADERS)}"
        )
    return found


def true_answer(name: str, ground_truth: Any, extra_info: Mapping[str, Any] | None) -> Any:
    """What a grader is given as the answer: the ground truth, with what stands beside it.

    MathVista's fields are beside it (its ground truth is a letter or a number), and so are the
    entry point of HumanEval's own `test` text and the rules of IFEval's rows.

    Args:
        name: of the grader.
        ground_truth: as the data has it.
        extra_info: verl's column or `Prompt.extra`; an object in `extra` (or its JSON) counts too.
    """
    if name not in ("mathvista", "code", "ifeval_rules"):
        return ground_truth
    beside = dict(extra_info or {})
    own = beside.get("extra")
    if isinstance(own, str):
        with contextlib.suppress(ValueError):
            own = json.loads(own)
    beside.update(own if isinstance(own, Mapping) else {})
    if name == "mathvista" and beside.get("question_type") is not None:
        return beside
    if name == "ifeval_rules" and ground_truth is None and "instruction_id_list" in beside:
        return {key: beside[key] for key in ("instruction_id_list", "kwargs")}
    if name == "code" and beside.get("entry_point") and ground_truth is not None:
        from reward_fns.code_truth import parsed_truth

        tests = parsed_truth(ground_truth)
        tests = {"test": tests} if isinstance(tests, str) else tests  # no JSON: a text of tests
        if isinstance(tests, Mapping) and "test" in tests:
            return {"entry_point": beside["entry_point"], **tests}
    return ground_truth


def check_truth(
    name: str, ground_truth: Any, extra_info: Mapping[str, Any] | None, *, run: bool = True
) -> Any:
    """`true_answer`, graded once against an empty response; None where there is no ground truth.

    Args:
        run: also run tests of programs against programs that do nothing.

    Raises:
        ValueError: the grader cannot read it, or it would accept what does nothing.
    """
    answer = true_answer(name, ground_truth, extra_info)
    if answer is not None and name == "code" and not run:
        from reward_fns.code_truth import read_tests

        read_tests(answer)
    elif answer is not None:
        get_grader(name)("", answer)
    return answer


def verl_grader(
    name: str, grade: Callable[..., float], settings: Sequence[str] = ()
) -> Callable[..., float]:
    """verl's `compute_score` of a grader: the grade alone.

    Args:
        name: of the grader: says what of `extra_info` belongs to the answer, see `true_answer`.
        grade: `grade(text, answer, **settings) -> float`.
        settings: arguments of `grade` that `reward.custom_reward_function.reward_kwargs` may set;
            others that it has are left aside.
    """

    def compute_score(
        data_source: str,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> float:
        answer = true_answer(name, ground_truth, extra_info)
        return grade(solution_str, answer, **{key: given[key] for key in settings if key in given})

    compute_score.__doc__ = f"verl's reward function of the grader `{name}`: see `verl_grader`."
    return compute_score
