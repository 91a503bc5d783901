r"""What stands in the last `\boxed{...}` of a text?"""

from __future__ import annotations

MARK = "\\boxed"


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` with its braces balanced; None where there is none.

    An unfinished box (the response was cut) is none, even if an earlier one is whole: the last
    box is the answer. Linear in the length of the text.
    """
    start = text.rfind(MARK)
    if start < 0:
        return None
    opening = start + len(MARK)
    while opening < len(text) and text[opening].isspace():
        opening += 1
    if opening == len(text) or text[opening] != "{":
        return None
    depth = 0
    for position in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[opening + 1 : position].strip()
    return None
