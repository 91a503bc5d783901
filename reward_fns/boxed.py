r"""What stands in the last `\boxed{...}` of a text?"""

from __future__ import annotations

import re

_MARK = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a sign, no group: \left\{
# without braces TeX boxes one token; people mean the number, or the one sign before the math ends
_BARE = re.compile(
    r"\s*(-?\d[\d.,/]*(?<![.,/])|\\[dt]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)"
    r"|\S(?=\s*(?:\$|\\\)|\\\])))"
)


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` with its braces balanced; None where there is none.

    An unfinished box (the response was cut) is none, even if an earlier one is whole: the last
    box is the answer. `\boxed` without content is a mention, not a box. Linear in the text.
    """
    return last_box(text)[1]


def last_box(text: str) -> tuple[int, str | None]:
    """Position and content of the last box, as in `last_boxed`; position -1 where there is none."""
    for mark in reversed(list(_MARK.finditer(text))):
        start = mark.end()
        while start < len(text) and text[start].isspace():
            start += 1
        if not text.startswith("{", start):
            bare = _BARE.match(text, mark.end())
            if bare is not None:
                return mark.start(), bare[1]
            continue
        content = _group(text, start)
        if content != "":
            return mark.start(), content
    return -1, None


def _group(text: str, opening: int) -> str | None:
    """What stands between the brace at `opening` and its partner; None where there is none."""
    depth = 0
    for found in _BRACE.finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return text[opening + 1 : found.start()].strip()
    return None
