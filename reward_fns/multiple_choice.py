r"""Grader of multiple-choice questions with options A to J.

    multiple_choice: 1 if the response's letter is the true one, else 0

The response's letter is, in this order: what stands in its last `\boxed{}`; in its last
`<answer>`; in its last statement like `answer is (B)` or `**Answer**: B`; the whole response, where
it is one letter or begins with a label. A label may have its option's text behind it (`B. Paris`,
`\textbf{(C)}\ 12`). Of several answers the last counts; one that names two options names none.
Only capital letters count in prose ("the answer is a number" names no option).
"""

from __future__ import annotations

import re

from reward_fns.graders import verl_grader
from reward_fns.stated import last_boxed

LONGEST = 1_000  # characters of an answer that begins with a label

_FRAME = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathbb|mbox|boldsymbol)\s{0,3}\{([^{}]{0,500})\}"
)
_FRAMED_LETTER = re.compile(
    r"(?:\*{1,3}|_{1,3}|[$`]|\\\()\s?([A-J])\s?(?:\*{1,3}|_{1,3}|[$`]|\\\))"
)
_MARKUP = re.compile(r"\\[()\[\],;:! ]|\\(?:bf|rm|it|tt|quad)\b|[$*`]|(?<![A-Za-z])_|_(?![A-Za-z])")
# what announces an answer, up to the answer
_ANNOUNCED = re.compile(
    r"(?:\banswer\b|\bcorrect\s(?:option|choice)\b)[\"']?\s{0,3}"
    r"(?:(?:is|(?:should|would|must)\sbe)\b(?:\s(?:therefore|thus|clearly|indeed))?\s{0,3}:?|[:=])"
    r"\s{0,9}"
    r"|^[#\s]{0,9}(?:the\s|final\s|correct\s){0,3}answer[ \t]{0,9}\n\s{0,9}",
    re.IGNORECASE | re.MULTILINE,
)
_TAG = re.compile(r"<answer>([^<]{0,1000})", re.IGNORECASE)
_OPTION = r"[({\[\"']{0,9}\s{0,3}(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\b\s{0,3}:?\s{0,3})?"
_STATED = re.compile(rf"{_OPTION}(?:\(?([A-J])(?![A-Za-z0-9'’])|\(([a-j])\))")
_ARTICLE = re.compile(
    r"[AI]\s(?!(?:and|as|because|but|by|for|from|if|in|or|since|so|where|which|with)\b)[a-z]"
)
_ALONE = re.compile(rf"{_OPTION}([A-Ja-j])[)}}\].,:\"'\s]{{0,9}}")
_LABEL = re.compile(
    rf"{_OPTION}(?:(?<=[(\[])\s?([A-Ja-j])\s?[)\]]|([A-J])\s?(?:[.):](?!\d)|\s?[-\u2013\u2014]\s))\s*"
)
_SECOND = re.compile(  # another option beside the first: `or C`, `/C`, `, C`; not `and C is wrong`
    r"[)\].]{0,2}(?:-|\s{0,3}(?:/|&|\+|\band\b|\bor\b)\s{0,3})[(\[]?[A-J][)\]]?(?![A-Za-z0-9'’])"
    r"(?!\s(?:is|are|was|would|does|has|can|being)\b)"
    r"|[)\].]{0,2}\s{0,3},\s{0,3}[(\[]?[A-J][)\]]?(?=\s*(?:$|[,.\n]|and\b|or\b))"
)
_OTHER_LABEL = re.compile(r"(?<![A-Za-z0-9])(?:\([A-J]\)|[A-J][.):](?=\s))")
_PROSE = re.compile(r"(?:is|are|was|were|can|could|would|will|has|have|says)\b")


def grade(text: str, answer: str) -> float:
    """1.0 if the last chosen letter is `answer`, else 0.0; no text raises.

    Raises:
        ValueError: `answer`, the ground truth, is not one letter from A to J.
    """
    alone = _ALONE.fullmatch(str(answer).strip())
    if alone is None:
        raise ValueError(f"the ground truth {answer!r} is no option: give one letter from A to J")
    return float(isinstance(text, str) and chosen_letter(text) == alone[1].upper())


def chosen_letter(text: str) -> str | None:
    """The option that a text chooses, as a capital letter, or None."""
    boxed = last_boxed(text)
    tagged = _TAG.findall(text) if boxed is None else []
    answer = boxed if boxed is not None else tagged[-1] if tagged else None
    if answer is not None:
        return _labelled(answer) or _announced(answer)
    return _announced(text) or _labelled(text)


def _announced(text: str) -> str | None:
    """The letter of the last statement of an answer that has one; None if it has two."""
    plain, letter = _plain(text), None
    for announced in _ANNOUNCED.finditer(plain):
        stated = _STATED.match(plain, announced.end())
        if stated is None or _ARTICLE.match(plain, stated.start(stated.lastindex)):
            continue
        two = _SECOND.match(plain, stated.end())
        letter = None if two else stated[stated.lastindex].upper()
    return letter


def _labelled(text: str) -> str | None:
    """The letter of a text that is one letter, or one option's label and text; else None."""
    plain = _plain(text[: LONGEST + 1]).strip()
    alone = _ALONE.fullmatch(plain)
    if alone is not None:
        return alone[1].upper()
    label = _LABEL.match(plain)
    if label is None or len(text) > LONGEST or _SECOND.match(plain, label.end(label.lastindex)):
        return None
    behind = plain[label.end() :]
    if _PROSE.match(behind) or _ALONE.fullmatch(behind) or _OTHER_LABEL.search(behind):
        return None
    return label[label.lastindex].upper()


def _plain(text: str) -> str:
    """A text without markup; a letter in a frame of its own (`**B**`, `$B$`) becomes `(B)`."""
    while (unframed := _FRAME.sub(_unframed, text)) != text:
        text = unframed
    return _MARKUP.sub(" ", _FRAMED_LETTER.sub(r"(\1)", text))


def _unframed(frame: re.Match[str]) -> str:
    return f"({frame[1]})" if re.fullmatch("[A-J]", frame[1].strip()) else frame[1]


compute_score = verl_grader("multiple_choice", grade)
