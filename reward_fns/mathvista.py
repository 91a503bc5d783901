r"""Grader of MathVista: option letters become their texts, numbers are compared at their precision.

    mathvista: 1 if the response's answer, normalised as the benchmark does, is the true one, else 0

The truth is an object (or its JSON) with MathVista's own fields: `answer`, `question_type`
(multi_choice or free_form), `answer_type` (text, integer, float, list), `choices`, `precision`.
The answer of a multi_choice question is the *text* of the right option, while policies answer with
its letter: the letter is looked up in `choices`, and the option's text counts as well. An integer
is cut to whole, a float rounded to `precision` decimals, lists are compared number by number; what
is not one number where one is asked for (`stated.py`) is wrong.

The response's answer is its last `\boxed{}`, or else its last `Answer: ...` / `answer is ...`.
Deviation from the benchmark: it has a language model extract the answer and then takes the option
nearest in spelling, so that anything is some option; here what names no option is wrong.

Source: MathVista (arXiv 2310.02255), evaluation/calculate_score.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from reward_fns.graders import verl_grader
from reward_fns.multiple_choice import chosen_letter
from reward_fns.stated import last_boxed, one_number

_STATED = re.compile(r"\banswer\s{0,3}(?:is|[:=])\s{0,3}([^\n]{1,200})", re.IGNORECASE)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s{0,3}\{([^{}]{0,200})\}")
_FIELDS = ("answer", "question_type", "answer_type")


def grade(text: str, answer: str | Mapping[str, Any]) -> float:
    """1.0 if the response's answer is the true one, else 0.0; no text raises.

    Args:
        text: the response.
        answer: MathVista's fields, as an object or its JSON.

    Raises:
        ValueError: a field is missing that the question's kind needs, or the answer is not of it.
    """
    truth = _truth(answer)
    given = _given(text) if isinstance(text, str) else None
    if truth["question_type"] == "multi_choice":
        choices = [str(choice) for choice in truth["choices"]]
        picked = _option(text, given, choices) if isinstance(text, str) else None
        return float(picked is not None and picked == str(truth["answer"]).strip())
    if given is None:
        return 0.0
    normal = _NORMAL[truth["answer_type"]]
    value = normal(given, truth)
    return float(value is not None and value == normal(str(truth["answer"]), truth))


def _integer(text: str, truth: Mapping[str, Any]) -> int | None:
    number = one_number(text)
    return None if number is None else int(number)


def _float(text: str, truth: Mapping[str, Any]) -> float | None:
    number = one_number(text)
    return None if number is None else round(float(number), int(float(truth["precision"])))


def _list(text: str, truth: Mapping[str, Any]) -> list[Fraction] | None:
    """The numbers of a list; None where an item is not one number."""
    items = re.split(r",(?!\\!|\})", re.sub(r"\\[{}]", "", text).strip("[](){}$ "))
    numbers = [one_number(item) for item in items]
    return None if None in numbers else numbers


def _words(text: str, truth: Mapping[str, Any]) -> str | None:
    return _plain(text) or None


# answer_type -> what the benchmark compares; None for an answer that is not of that type
_NORMAL = {"integer": _integer, "float": _float, "list": _list, "text": _words}


def _truth(answer: str | Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        truth = json.loads(answer) if isinstance(answer, str) else answer
    except json.JSONDecodeError:
        truth = answer
    if not isinstance(truth, Mapping):
        raise ValueError(
            f"the ground truth {answer!r:.80} is no object: mathvista needs {', '.join(_FIELDS)}, "
            "and choices or precision, of the question"
        )
    needed: list[str] = [*_FIELDS]
    if truth.get("question_type") == "multi_choice":
        needed.append("choices")
    elif truth.get("answer_type") == "float":
        needed.append("precision")
    missing = [name for name in needed if truth.get(name) is None]
    if missing:
        raise ValueError(
            f"the ground truth lacks {', '.join(missing)}: load MathVista with its own fields"
        )
    kind, right = truth["answer_type"], str(truth["answer"])
    if truth["question_type"] == "multi_choice":
        if right.strip() not in [str(choice).strip() for choice in truth["choices"]]:
            raise ValueError(f"the ground truth's answer {right!r:.80} is none of its choices")
    elif kind not in _NORMAL or _NORMAL[kind](right, truth) is None:
        raise ValueError(
            f"the ground truth's answer {right!r:.80} is no {kind!r}: mathvista grades "
            f"{', '.join(_NORMAL)}"
        )
    return truth


def _given(text: str) -> str | None:
    """What the response states as its answer, without wrapping; None where there is none."""
    boxed = last_boxed(text)
    if boxed is None:
        stated = _STATED.findall(text)
        if not stated:
            return None
        boxed = stated[-1]
    return _WRAPPED.sub(r"\1", boxed[:1000]).strip("$ \n*").rstrip(". ")


def _option(text: str, given: str | None, choices: Sequence[str]) -> str | None:
    """The text of the chosen option, by its text or by its letter."""
    plain = {_plain(choice): choice for choice in choices}
    if given is not None and _plain(given) in plain:
        return plain[_plain(given)].strip()
    letter = chosen_letter(text)
    place = -1 if letter is None else ord(letter) - ord("A")
    return choices[place].strip() if 0 <= place < len(choices) else None


def _plain(text: str) -> str:
    return " ".join(text.lower().strip("$ .").split())


compute_score = verl_grader("mathvista", grade)
