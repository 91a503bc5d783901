r"""The process that compares formulas for `math_answer`: one JSON line in, one out.

    {"expected": "1/2", "given": "0.5"}  ->  {"equal": true}

It says {"ready": true} once math-verify is imported, and ends when its input does. Not meant to be
imported: run as a script.

math-verify reads `$...$` better than boxes (there a percent sign or a final dot makes a string),
takes blanks between numbers for sums (`2 3` is 5, `1 1/2` is 1), and rounds to six decimals, so
that all tiny values are equal. Formulas are written so that their value survives that, and what it
calls equal must be of the same size.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from typing import Any

MEMORY = 4 * 1024**3  # bytes of address space: 9**9**9 must not take the machine down
PARSE_SECONDS = COMPARE_SECONDS = 4
ROUNDED, EXACT = 1e-4, 1e-12  # relative distance of equal values, with decimals and without

_MINUS = str.maketrans(dict.fromkeys("\u2012\u2212\ufe63\uff0d", "-"))
_TAIL = re.compile(r"(?:\s|\.|(?<!\\)\\[,;:! ])+$")
_GAP = r"(?:\{,\}|,\\!\s*|\\,|\\ |\\!|~|[\u00a0\u2009\u202f])"
_GROUPED = re.compile(rf"(?<![\d.])([1-9]\d{{0,2}})((?:{_GAP}\d{{3}})+)(?!\d|{_GAP}\d)")
_MIXED = re.compile(r"(?<![\d.,/^_])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d./^])")
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![\w.])")
_REPEATING = re.compile(
    r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))(?!\s*[\d\\])"
)
_BRACELESS = re.compile(r"\\([dt]?)frac\s*(\d)\s+(\d)(?!\d)")
_PERCENT = re.compile(r"\s*\\?%")
# `2 3` is neither 23 nor 5; in `\log_2 8` the first number belongs to what stands before it
_TWO_NUMBERS = re.compile(r"(?<![\d^_.])[\d.]*\d(?:\s|~|\\[ ,;:!]|\\q?quad)+\.?\d")


def written(formula: str) -> str:
    """A formula in signs that math-verify reads as what they mean; its value stays the same."""
    formula = formula.strip().translate(_MINUS)
    formula = re.sub(r"^\$+(.*?)(?<!\\)\$+$", r"\1", formula, flags=re.DOTALL)
    formula = _TAIL.sub("", formula.strip())
    formula = _BRACELESS.sub(r"\\\1frac{\2}{\3}", formula)
    formula = _GROUPED.sub(lambda found: found[1] + re.sub(r"\D", "", found[2]), formula)
    formula = _MIXED.sub(r"\1\\frac{\2}{\3}", formula)
    formula = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", formula)
    return _REPEATING.sub(_fraction, formula)


def _fraction(decimal: re.Match[str]) -> str:
    """`0.1\overline{6}` is (16 - 1) / 90."""
    whole, fixed, repeated = decimal[1] or "0", decimal[2], decimal[3] or decimal[4]
    above = int(whole + fixed + repeated) - int(whole + fixed)
    below = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    return rf"\frac{{{above}}}{{{below}}}"


def same_size(expected: object, given: object) -> bool:
    """Whether the numbers in two expressions, already called equal, differ by rounding alone."""
    left, right = _numbers(expected), _numbers(given)
    if left is None or right is None or len(left) != len(right):
        return True  # nothing to measure
    pairs = zip(sorted(left), sorted(right), strict=True)
    return all(
        abs(a - b) <= (EXACT if exact and also else ROUNDED) * max(abs(a), abs(b))
        for (a, exact), (b, also) in pairs
    )


def _numbers(expression: object) -> list[tuple[Any, bool]] | None:
    """(value, whether exact) of a real number, or of each in a set, a pair, an interval, a matrix;
    None for anything else."""
    import sympy

    if isinstance(expression, sympy.Eq):
        return _numbers(expression.rhs)
    if isinstance(expression, sympy.Interval):
        parts = [end for end in (expression.start, expression.end) if end.is_finite]
    elif isinstance(expression, sympy.MatrixBase):
        parts = list(expression.flat())
    elif isinstance(expression, (sympy.FiniteSet, sympy.Tuple)):
        parts = list(expression.args)
    elif isinstance(expression, sympy.Expr) and expression.is_number:
        value = sympy.N(expression.doit(), 20)  # no float: 1e-400 is not 0
        exact = not expression.has(sympy.Float)
        return [(value, exact)] if value.is_real and value.is_finite else None
    else:
        return None
    found = [_numbers(part) for part in parts]
    return None if None in found else [number for numbers in found for number in numbers]


def main() -> None:
    """Serve comparisons until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    kinds = (LatexExtractionConfig(), ExprExtractionConfig())

    def read(formula: str) -> list[object]:
        framed = f"${formula}$" if not re.search(r"(?<!\\)\$", formula) else rf"\boxed{{{formula}}}"
        return parse(framed, kinds, parsing_timeout=PARSE_SECONDS)

    def same(expected: str, given: str) -> bool:
        return any(
            bool(verify(left, right, timeout_seconds=COMPARE_SECONDS)) and same_size(left, right)
            for left in read(expected)
            for right in read(given)
        )

    def equal(expected: str, given: str) -> bool:
        expected, given = written(expected), written(given)
        if _TWO_NUMBERS.search(expected) or _TWO_NUMBERS.search(given):
            return False
        pair = [_PERCENT.sub("", formula) for formula in (expected, given)]
        if same(*pair):
            return True
        # 50% is 50 where percents were asked for, and 1/2
        marked = [bool(_PERCENT.search(formula)) for formula in (expected, given)]
        if marked[0] == marked[1]:
            return False
        place = marked.index(True)
        pair[place] = rf"\frac{{{pair[place]}}}{{100}}"
        return same(*pair)

    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            right = equal(request["expected"], request["given"])
        except (MemoryError, RecursionError):
            right = False
        print(json.dumps({"equal": right}), file=answers, flush=True)


if __name__ == "__main__":
    main()
