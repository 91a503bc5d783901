r"""Grader of MathVista: option letters become their texts, numbers are compared at their precision.

    mathvista: 1 if the response's answer, normalised as the benchmark does, is the true one, else 0

The truth is an object (or its JSON) with MathVista's own fields: `answer`, `question_type`
(multi_choice or free_form), `answer_type` (text, integer, float, list), `choices`, `precision`.
The answer of a multi_choice question is the *text* of the right option, while policies answer with
its letter: the letter is looked up in `choices`, and the option's text counts as well. An integer
is cut to whole, a float rounded to `precision` decimals, lists are compared number by number.

The response's answer is its last `\boxed{}`, or else its last `Answer: ...` / `answer is ...`.
Deviation from the benchmark: it has a language model extract the answer and then takes the option
nearest in spelling, so that anything is some option; here what names no option is wrong.

Source: MathVista (arXiv 2310.02255), evaluation/calculate_score.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from reward_fns.boxed import last_boxed
from reward_fns.multiple_choice import chosen_letter

_STATED = re.compile(r"\banswer\s{0,3}(?:is|[:=])\s{0,3}([^\n]{1,200})", re.IGNORECASE)
_NUMBER = re.compile(r"-?(?:\d[\d,]{0,40}(?:\.\d{1,20})?|\.\d{1,20})")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s{0,3}\{([^{}]{0,200})\}")
_FIELDS = ("answer", "question_type", "answer_type")


def grade(text: str, answer: str | Mapping[str, Any]) -> float:
    """1.0 if the response's answer is the true one, else 0.0; no text raises.

    Args:
        text: the response.
        answer: MathVista's fields, as an object or its JSON.

    Raises:
        ValueError: a field is missing that the question's kind needs.
    """
    truth = _truth(answer)
    given = _given(text) if isinstance(text, str) else None
    if truth["question_type"] == "multi_choice":
        choices = [str(choice) for choice in truth["choices"]]
        picked = _option(text, given, choices) if isinstance(text, str) else None
        return float(picked is not None and picked == str(truth["answer"]).strip())
    if given is None:
        return 0.0
    expected = str(truth["answer"])
    kind = truth["answer_type"]
    if kind == "integer":
        found = _numbers(given)
        return float(bool(found) and str(int(found[0])) == expected.strip())
    if kind == "float":
        found = _numbers(given)
        places = int(float(truth["precision"]))
        return float(bool(found) and round(found[0], places) == round(float(expected), places))
    if kind == "list":
        items = _numbers(given, listed=True)
        return float(bool(items) and items == _numbers(expected, listed=True))
    return float(_plain(given) == _plain(expected))


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
    return truth


def _given(text: str) -> str | None:
    """What the response states as its answer, without wrapping; None where there is none."""
    boxed = last_boxed(text)
    if boxed is None:
        stated = _STATED.findall(text)
        if not stated:
            return None
        boxed = stated[-1]
    return _WRAPPED.sub(r"\1", boxed[:1000]).strip().strip("$ .*")


def _option(text: str, given: str | None, choices: Sequence[str]) -> str | None:
    """The text of the chosen option, by its text or by its letter."""
    plain = {_plain(choice): choice for choice in choices}
    if given is not None and _plain(given) in plain:
        return plain[_plain(given)].strip()
    lettered = re.fullmatch(r"\(?([A-Za-z])[).:]\s*(.*)", given or "", re.DOTALL)
    letter = lettered.group(1).upper() if lettered else chosen_letter(text)
    place = -1 if letter is None else ord(letter) - ord("A")
    return choices[place].strip() if 0 <= place < len(choices) else None


def _numbers(text: str, *, listed: bool = False) -> list[float]:
    """The numbers in a text; `listed`: a comma ends one, else it may mark thousands."""
    text = text.replace(",", " ") if listed else text
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def _plain(text: str) -> str:
    return " ".join(text.lower().strip("$ .").split())


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Mapping[str, Any],
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> float:
    """verl's reward function: the grade alone. The fields may be in `extra_info["extra"]` (an
    object or its JSON), where the prompt set `mathvista` has them."""
    return grade(solution_str, (extra_info or {}).get("extra") or ground_truth)
