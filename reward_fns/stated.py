r"""What a response states: its last `\boxed{...}`, and the one number of an answer.

Numbers are read as people write them: `\$1{,}200.50`, `3 \times 10^5`, `1\frac{1}{2}`, `72 m^2`.
Digits may be grouped by threes (with `,` `{,}` `,\!` `\,` `\ ` or a thin or unbreakable space).
Fractions and mixed numbers are read exactly; a percent sign and units are left aside; of an
equation the last side counts. What is not one number (two of them, a range, a list, a formula) is
none: it is never read as its first digits.
"""

from __future__ import annotations

import re
from fractions import Fraction

_MARK = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a sign, no group: \left\{
# without braces TeX boxes one token; people mean the number, or the one sign before the math ends
_BARE = re.compile(
    r"\s*(-?\d[\d.,/]*(?<![.,/])|\\[dt]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)"
    r"|\S(?=\s*(?:\$|\\\)|\\\])))"
)


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` with its braces balanced; None where there is none.

    An unfinished box (the response was truncated) is none, even if an earlier one is whole: the
    last box is the answer. `\boxed` without content is a mention, not a box. Linear in the text.
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


LONGEST = 200  # characters; a longer answer is garbage
_LARGEST_POWER = 300  # of ten

_MINUS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
_GAPS = str.maketrans(dict.fromkeys("\u00a0\u2006\u2007\u2009\u200a\u202f", "~"))
_FRAME = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|boldsymbol|emph)\s*\{([^{}]*)\}"
)
_GAP = r"(?:\{,\}|,\\!\s*|,|\\,|\\ |~)"
_GROUPED = re.compile(rf"(?<![\d.,])([1-9]\d{{0,2}})((?:{_GAP}\d{{3}})+)(?!\d|{_GAP}\d)")
# words before a number, none of which changes it: `Total: 5`, `The friends found 30 eggs`
_INTRODUCED = re.compile(
    r"(?!\D*\b(?:not?|never|without|minus|negative|plus|(?:half|third|quarter)\s+of|twice|double|"
    r"triple|than|over|under|above|below|least|most|between|sqrt|root|log|ln|lg|sin|cos|tan|exp|mod)"
    r"\b)"
    r"[A-Za-z](?:[A-Za-z ,;:.'’]|-(?=[A-Za-z]))*[ :](?=[-$€£¥₹.\d\\])",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?:_\{?\w+\}?)?\s*=")
_CURRENCY = r"(?:(?:US|A|C|NZ|HK|S)?\$|[€£¥₹]|Rs\.?|USD|EUR)"
_DIGITS = r"\d{1,40}(?:\.\d{1,40})?"
_PLAIN = r"(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})"
_POWER = r"10\s*\^\s*(?:\{\s*(-?\d{1,4})\s*\}|(-?\d{1,4}))"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*{_CURRENCY}?\s*(?P<late>-?)\s*(?:"
    rf"(?P<whole>\d{{1,40}})?\s*\\[dt]?frac\s*"
    rf"(?:\{{\s*(?P<over>-?{_DIGITS})\s*\}}|(?P<o>\d))\s*(?:\{{\s*(?P<under>-?{_DIGITS})\s*\}}|(?P<u>\d))"
    rf"|(?:(?P<before>\d{{1,40}})\s+)?(?P<above>{_DIGITS})\s*/\s*(?P<below>{_DIGITS})"
    rf"|(?P<bare>{_POWER})"
    rf"|(?P<plain>{_PLAIN})(?:[eE](?P<e>[+-]?\d{{1,4}})|\s*(?:\\times|\\cdot|[*x×·])\s*(?:{_POWER}))?)"
)
_POWERS = sorted({*range(1, _NUMBER.groups + 1)} - {*_NUMBER.groupindex.values()})  # of _POWER
_SQUARED = re.compile(r"\b(\w*(?:m|ft|in|yd|mi|s|feet|inches|units?))\s*\^\s*\{?\s*-?[23]\s*\}?")
# what may follow: o'clock, units, words; nothing that goes on calculating, no unknown, no constant
_UNIT = re.compile(
    r"(?::00(?!\d))?(?:\s*\^?\s*\{?\s*(?:\\circ|\\degree|°)\s*\}?)?(?!\s*[-~])(?!\s*[xyznk]\s*$)"
    r"[^\d+*^=<>±\\π√∞]*"
)


def one_number(text: str) -> Fraction | None:
    """The number that a text states, exactly; None where it states none or more than one."""
    if len(text) > LONGEST:
        return None
    text = text.translate(_MINUS).translate(_GAPS)
    while (unframed := _FRAME.sub(r"\1", text)) != text:
        text = unframed
    text = _GROUPED.sub(lambda found: found[1] + re.sub(r"\D", "", found[2]), text)
    text = re.sub(r"\\[,;:! ]|~", " ", re.sub(r"\\([%$])", r"\1", text))
    if len(_ASSIGNED.findall(text)) > 1:  # x = 1, y = 2
        return None
    text = re.split(r"(?<![<>!\\])=", re.sub(r"\\[()\[\]]", "", text))[-1]
    text = text.lstrip(" \t\n$*_([:\"'`")
    introduced = _INTRODUCED.match(text)
    text = (text[introduced.end() :] if introduced else text).rstrip(" \t\n$*_)].,;:\"'`")
    found = _NUMBER.match(text)
    if found is None or not _UNIT.fullmatch(_SQUARED.sub(r"\1", text[found.end() :])):
        return None
    return _value(found)


def _value(found: re.Match[str]) -> Fraction | None:
    """The value of what `_NUMBER` found; None without sense (divided by 0) or out of reach."""
    over, under = found["over"] or found["o"] or found["above"], found["under"] or found["u"]
    if over is not None:
        below = Fraction(under or found["below"])
        if not below:
            return None
        value = Fraction(found["whole"] or found["before"] or 0) + Fraction(over) / below
    else:
        written = [found[place] for place in (*_POWERS, "e")]
        power = int(next((part for part in written if part is not None), 0))
        if abs(power) > _LARGEST_POWER:
            return None
        plain = found["plain"]
        value = Fraction(plain.rstrip(".") if plain else 1) * Fraction(10) ** power
    return -value if (found["sign"] == "-") != bool(found["late"]) else value
