"""The demo task: arithmetic on numbers of several digits, one exact integer answer.

Two families of problems:

    sums        `347 + 85 - 112 = ?`      2 to 5 operands of 1 to 4 digits, partial sums >= 0
    products    `347 * 6 + 28 * 4 = ?`    1 to 3 products of 1 to 4 digits by one digit

A user may ask for an answer without thinking (`347 + 85 = ? /no_think`) or for a length
(`about 120 tokens: 347 + 85 = ?`); the policy follows the first and, as shipped, not the second.

Difficulty is the number of columns of the schoolbook method. A response ends with
`the answer is 320`, whatever comes before it; `grade` looks at nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from reward_fns.demo import states_answer

FAMILIES = ("sums", "products")
MAX_DIGITS = 4
MIN_OPERANDS, MAX_OPERANDS = 2, 5
MAX_PRODUCTS = 3
LEVELS = {"easy": (1, 2), "middling": (3, 8), "hard": (9, 99)}
"""columns of the schoolbook method, inclusive, by level of difficulty"""
STYLES = ("direct", "short", "columns", "checked")
NO_THINKING = " /no_think"


@dataclass(frozen=True)
class Problem:
    """One problem: signed operands in order, the first positive; products have a factor each."""

    terms: tuple[int, ...]
    factors: tuple[int, ...] = ()
    """one-digit factors of the terms, empty for a sum"""

    @property
    def family(self) -> str:
        """One of `FAMILIES`."""
        return "products" if self.factors else "sums"

    @property
    def answer(self) -> int:
        """The exact result."""
        if not self.factors:
            return sum(self.terms)
        return sum(term * factor for term, factor in zip(self.terms, self.factors, strict=True))

    @property
    def columns(self) -> int:
        """Columns of the schoolbook method, one digit each: the difficulty."""
        count, parts = 0, list(self.terms)
        if self.factors:
            count = sum(len(str(term)) for term in self.terms)
            parts = [a * b for a, b in zip(self.terms, self.factors, strict=True)]
        total = parts[0]
        for part in parts[1:]:
            count += max(len(str(total)), len(str(abs(part))))
            total += part
        return count

    @property
    def level(self) -> str:
        """One of `LEVELS`."""
        return next(name for name, (_, high) in LEVELS.items() if self.columns <= high)

    @property
    def text(self) -> str:
        """The question as the user writes it, `347 + 85 - 112 = ?`."""
        if self.factors:
            pairs = zip(self.terms, self.factors, strict=True)
            return " + ".join(f"{term} * {factor}" for term, factor in pairs) + " = ?"
        signed = "".join(f" {'+' if term > 0 else '-'} {abs(term)}" for term in self.terms[1:])
        return f"{self.terms[0]}{signed} = ?"


def random_problem(rng: random.Random, *, family: str = "sums", digits: int, parts: int) -> Problem:
    """One random problem.

    Args:
        family: one of `FAMILIES`.
        digits: of the longest operand, 1 to `MAX_DIGITS`; the others have 1 to `digits`.
        parts: operands of a sum (2 to 5), products of a product problem (1 to 3).
    """
    terms = [_number(rng, rng.randint(1, digits)) for _ in range(parts)]
    longest = rng.randrange(parts)
    terms[longest] = _number(rng, digits)
    if family == "products":
        return Problem(tuple(terms), tuple(rng.randint(2, 9) for _ in terms))
    total = terms[0]
    for index in range(1, parts):
        if rng.random() < 0.5 and terms[index] <= total:
            terms[index] *= -1
        total += terms[index]
    return Problem(tuple(terms))


def sample_problems(
    n: int,
    *,
    seed: int,
    family: str = "sums",
    digits: tuple[int, int] = (1, MAX_DIGITS),
    level: str | None = None,
) -> list[Problem]:
    """`n` different problems; the same arguments always give the same list.

    Args:
        n: number of problems.
        seed: any integer.
        family: one of `FAMILIES`.
        digits: range of the digits of the longest operand, drawn uniformly; the number of
            operands or products is drawn uniformly too.
        level: one of `LEVELS` alone; None takes what comes.

    Raises:
        ValueError: n is negative, family, digits or level is unknown, or there are fewer than `n`
            such problems.
    """
    low, high = digits
    if n < 0:
        raise ValueError(f"n is {n}, but a number of problems cannot be negative; pass n >= 0")
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}; there are {', '.join(FAMILIES)}")
    if not 1 <= low <= high <= MAX_DIGITS:
        raise ValueError(
            f"digits is {digits}, but the policy knows operands of 1 to {MAX_DIGITS} digits; pass "
            "(low, high) within them"
        )
    if level not in (None, *LEVELS):
        raise ValueError(f"level is {level!r}; there are {', '.join(LEVELS)}")
    rng = random.Random(f"lenvm-demo-{family}-{seed}")
    parts = (1, MAX_PRODUCTS) if family == "products" else (MIN_OPERANDS, MAX_OPERANDS)
    found: dict[Problem, None] = {}  # insertion order is the order of the list
    misses = 0
    while len(found) < n:
        before = len(found)
        problem = random_problem(
            rng, family=family, digits=rng.randint(low, high), parts=rng.randint(*parts)
        )
        if level in (None, problem.level):
            found.setdefault(problem)
        misses = 0 if len(found) > before else misses + 1
        if misses > 20_000:
            raise ValueError(
                f"n is {n}, but {family} of {low} to {high} digits gave only {len(found)} "
                "different problems; ask for fewer or allow more digits"
            )
    return list(found)


def messages(
    problem: Problem, *, thinking: bool = True, tokens: int | None = None
) -> list[dict[str, str]]:
    """The problem as chat messages, for the tokenizer's chat template.

    Args:
        thinking: False asks for the answer alone.
        tokens: length that the user asks for; None asks for none.
    """
    asked = "" if tokens is None else f"about {tokens} tokens: "
    return [{"role": "user", "content": asked + problem.text + ("" if thinking else NO_THINKING)}]


def grade(text: str, answer: int | str) -> bool:
    """Whether a response is right: the rule of the grader `demo`, but no ground truth raises."""
    return states_answer(text, answer)


def style(text: str) -> str:
    """The one of `STYLES` that a response is written in.

    `checked` is any response that says "wait"; without it, `columns` works out a step digit by
    digit, `short` has a step in one go, and `direct` has no step.
    """
    if "wait" in text:
        return "checked"
    if ":" in text:
        return "columns"
    return "short" if "=" in text else "direct"


def _number(rng: random.Random, digits: int) -> int:
    """A number of exactly this many digits, never 0."""
    return rng.randint(10 ** (digits - 1), 10**digits - 1)
