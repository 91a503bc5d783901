"""The demo task: chains of additions and subtractions, 2 to 12 operands, one exact integer answer.

A problem reads `12 + 7 - 3 = ?`. Every partial sum stays in [0, 99], so that a number is always
one word of the policy's vocabulary. Difficulty is the number of operands. A response ends with
`the answer is 16`, whatever comes before it; `grade` looks at nothing else.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from reward_fns.demo import states_answer

MIN_OPERANDS, MAX_OPERANDS = 2, 12
MAX_TERM = 20  # operands are 1..20
MAX_TOTAL = 99  # partial sums are 0..99
STYLES = ("bare", "terse", "wordy", "checking")


@dataclass(frozen=True)
class Problem:
    """One chain: `terms` are the signed operands in order, the first always positive."""

    terms: tuple[int, ...]

    @property
    def operands(self) -> int:
        """Number of operands, the difficulty."""
        return len(self.terms)

    @property
    def answer(self) -> int:
        """The exact result."""
        return sum(self.terms)

    @property
    def text(self) -> str:
        """The question as the user writes it, `12 + 7 - 3 = ?`."""
        signed = "".join(f" {'+' if term > 0 else '-'} {abs(term)}" for term in self.terms[1:])
        return f"{self.terms[0]}{signed} = ?"


def random_problem(rng: random.Random, operands: int) -> Problem:
    """Draw one problem with exactly this many operands (2 to 12).

    Magnitudes are uniform in 1..20 and signs are fair; a sign that would take the partial sum out
    of [0, 99] is flipped (the other sign always fits, as 20 < 99 / 2).
    """
    total = rng.randint(1, MAX_TERM)
    terms = [total]
    for _ in range(operands - 1):
        term = rng.randint(1, MAX_TERM) * rng.choice((-1, 1))
        if not 0 <= total + term <= MAX_TOTAL:
            term = -term
        terms.append(term)
        total += term
    return Problem(tuple(terms))


def sample_problems(
    n: int, *, seed: int, operands: tuple[int, int] = (MIN_OPERANDS, MAX_OPERANDS)
) -> list[Problem]:
    """Draw `n` different problems, the number of operands uniform in `operands` (inclusive).

    The same arguments always give the same list. There are only about 600 problems with two
    operands, so a long list has fewer of them than of the others.

    Raises:
        ValueError: n is negative, the range is not within 2..12, or the range holds fewer than
            `n` problems.
    """
    low, high = operands
    if n < 0:
        raise ValueError(f"n is {n}, but a number of problems cannot be negative; pass n >= 0")
    if not MIN_OPERANDS <= low <= high <= MAX_OPERANDS:
        raise ValueError(
            f"operands is {operands}, but the policy knows chains of {MIN_OPERANDS} to "
            f"{MAX_OPERANDS} operands; pass (low, high) within them"
        )
    rng = random.Random(f"lenvm-demo-{seed}")
    found: dict[Problem, None] = {}  # insertion order is the order of the list
    misses = 0
    while len(found) < n:
        before = len(found)
        found.setdefault(random_problem(rng, rng.randint(low, high)))
        misses = 0 if len(found) > before else misses + 1
        if misses > 20_000:
            raise ValueError(
                f"n is {n}, but chains of {low} to {high} operands gave only {len(found)} "
                "different problems; ask for fewer or allow more operands"
            )
    return list(found)


def messages(problem: Problem) -> list[dict[str, str]]:
    """The problem as chat messages, for the tokenizer's chat template."""
    return [{"role": "user", "content": problem.text}]


def grade(text: str, answer: int | str) -> bool:
    """Whether a response is right: the rule of the grader `demo`, but no ground truth raises."""
    return states_answer(text, answer)


def style(text: str) -> str:
    """Which of `STYLES` a response is written in.

    `checking` is any response that says "wait"; without it, `wordy` has a spelled-out step,
    `terse` has an equation, and `bare` has neither.
    """
    if re.search(r"\bwait\b", text):
        return "checking"
    if re.search(r"\bto get\b", text):
        return "wordy"
    return "terse" if "=" in text else "bare"
