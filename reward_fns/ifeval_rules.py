"""Grader of instructions that a program can check: the rules of IFEval.

    ifeval_rules: 1 if the response is not empty and follows every rule of its prompt, else 0

The answer is {"instruction_id_list": [name, ...], "kwargs": [{argument: value}, ...]} or its JSON,
as IFEval's rows have them. Rules mean what IFEval's own program does with them ("strict": the
response as it stands), with keywords taken as text and not as patterns. Three of its 25 rules are
not here, because they need a model of a language (response_language, number_sentences,
capital_word_frequency); english_lowercase and english_capital look at the letters alone.

Source: Zhou et al., Instruction-following evaluation for large language models (arXiv 2311.07911);
rules written anew.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_fns.graders import verl_grader

_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _related(count: int, relation: str, number: int) -> bool:
    """ "at least" or "less than" a number."""
    if relation not in ("at least", "less than"):
        raise ValueError(f"relation {relation!r} is neither 'at least' nor 'less than'")
    return count >= number if relation == "at least" else count < number


def _words(text: str, relation: str, num_words: int) -> bool:
    return _related(len(re.findall(r"\w+", text)), relation, num_words)


def _contains(text: str, keywords: Sequence[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def _keyword_count(text: str, keyword: str, relation: str, frequency: int) -> bool:
    return _related(text.lower().count(keyword.lower()), relation, frequency)


def _avoids(text: str, forbidden_words: Sequence[str]) -> bool:
    words = (rf"\b{re.escape(word)}\b" for word in forbidden_words)
    return not any(re.search(word, text, re.IGNORECASE) for word in words)


def _letter_count(text: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    return _related(text.lower().count(letter.lower()), let_relation, let_frequency)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """Parts between `***`; the first and the last may be empty, no other."""
    parts = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(parts) == num_paragraphs


def _nth_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Parts between blank lines: their number, and how the n-th begins."""
    parts = [part.strip() for part in text.split("\n\n")]
    if nth_paragraph > len(parts) or not parts[nth_paragraph - 1]:
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    word = re.split(r"[.,?!'\"]", word)[0]
    return sum(map(bool, parts)) == num_paragraphs and word.lower() == first_word.lower()


def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    marks = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    mark = marks.get(postscript_marker, re.escape(postscript_marker.lower()))
    return re.search(mark, text.lower()) is not None


def _bullets(text: str, num_bullets: int) -> bool:
    starred = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashed = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(starred) + len(dashed) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    """`*this*` and `**this**`; the second counts for itself, as the stars of it hold no text."""
    found = re.findall(r"\*[^\n*]*\*", text) + re.findall(r"\*\*[^\n*]*\*\*", text)
    return sum(bool(one.strip("*").strip()) for one in found) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    bare = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        bare = bare.removeprefix(fence)
    try:
        json.loads(bare.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    found = re.findall(r"<<[^\n]+>>", text)
    return any(one.lstrip("<").rstrip(">").strip() for one in found)


def _two_responses(text: str) -> bool:
    """Two different parts between `******`; empty ones only before the first and after the last."""
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _repeats(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


RULES: dict[str, Callable[..., bool]] = {
    "length_constraints:number_words": _words,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_first_word,
    "keywords:existence": _contains,
    "keywords:frequency": _keyword_count,
    "keywords:forbidden_words": _avoids,
    "keywords:letter_frequency": _letter_count,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "detectable_format:constrained_response": lambda text: any(one in text for one in _CHOICES),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
    "punctuation:no_comma": lambda text: "," not in text,
    "change_case:english_lowercase": str.islower,
    "change_case:english_capital": str.isupper,
}
"""Name of a rule -> function of (response text, its arguments by name)."""


def grade(text: str, answer: str | Mapping[str, Any]) -> float:
    """1.0 if the response follows all rules of `answer`, else 0.0; no text raises.

    Raises:
        ValueError: `answer` has no rules, one that is not among `RULES`, or arguments that a rule
            does not have.
    """
    said = text if isinstance(text, str) else ""
    followed = [_follows(said, name, arguments) for name, arguments in _rules(answer)]
    return float(bool(said.strip()) and all(followed))


def _follows(text: str, name: str, arguments: Mapping[str, Any]) -> bool:
    try:
        return RULES[name](text, **arguments)
    except (TypeError, AttributeError) as error:  # a number that is a text, a text that is none
        raise ValueError(f"rule {name} cannot be checked with {arguments}: {error}") from error


def _rules(answer: Any) -> list[tuple[str, dict[str, Any]]]:
    """(name, arguments) of each rule, the arguments being those that it has."""
    try:
        read = json.loads(answer) if isinstance(answer, str) else answer
        names, given = read["instruction_id_list"], read["kwargs"]
        pairs = list(zip(names, given, strict=True))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"the ground truth {str(answer)[:80]!r} holds no rules: ifeval_rules reads "
            '{"instruction_id_list": [...], "kwargs": [...]}, one object of arguments for each rule'
        ) from error
    if not pairs:
        raise ValueError("the ground truth has no rules: every response would follow them")
    for name, _ in pairs:
        if name not in RULES:
            raise ValueError(
                f"rule {name!r} is not checked here: leave such prompts out (the prompt set "
                f"ifeval_rules does); known are {', '.join(RULES)}"
            )
    return [(name, _arguments(name, one)) for name, one in pairs]


def _arguments(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A rule's arguments, those that are null left out (the hub's Parquet has all names)."""
    wanted = list(inspect.signature(RULES[name]).parameters)[1:]
    found = {key: value for key, value in (given or {}).items() if value is not None}
    if set(found) != set(wanted):
        raise ValueError(
            f"rule {name} needs {', '.join(wanted) or 'nothing'}, got {found or 'nothing'}"
        )
    return found


compute_score = verl_grader("ifeval_rules", grade)
