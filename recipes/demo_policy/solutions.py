"""Reasoning in several styles: the text that the demo policy learns to write.

For one problem the writer chooses at random (probabilities in `StyleMix`), whatever the problem is:

    direct    <think></think>the answer is 320
    short     <think>347 + 85 = 432; 432 - 112 = 320</think>the answer is 320
    columns   <think>347 + 85: 7 + 5 = 2', 4 + 8' = 3', 3 + 0' = 4, so 432; 432 - 112: ... so 320
              </think>the answer is 320
    checked   <think>(short or columns); wait, (columns); yes</think>the answer is 320

A tick is a carry or a borrow. A short step is all digits of a result in one go, the highest
first, which a small model can do only for small numbers; a column is one digit. What a style gets
right is therefore a matter of capability, not of luck. The writer itself is always right, but for
passes of checked responses: they slip, so that a check has something to find. Slips carry no loss:
the policy reads them in its context and never learns to make them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lenvm_rl.demo.task import Problem

MAX_CHARACTERS = 1200
"""no further pass is written after so much text (about 520 tokens)"""


@dataclass(frozen=True, kw_only=True)
class StyleMix:
    """Probabilities of the writer's choices, each in [0, 1]."""

    direct: float = 0.10
    """no step is written"""
    columns: float = 0.38
    """a first pass goes digit by digit (given that there is one)"""
    check: float = 0.22
    """a second look follows a first pass"""
    check_again: float = 0.12
    """a further look follows one that agreed"""
    short_slip: float = 0.25
    """a short step of a checked response is wrong"""
    column_slip: float = 0.02
    """a column of a checked response is wrong"""


@dataclass(frozen=True)
class Piece:
    """A stretch of a written response."""

    text: str
    is_slip: bool = False
    """a wrong result, which carries no loss"""


def answer(number: int) -> str:
    """The last words of every response."""
    return f"the answer is {number}"


def write(
    problem: Problem,
    rng: random.Random,
    mix: StyleMix | None = None,
    *,
    thinking: bool = True,
    reordered: bool = False,
) -> list[Piece]:
    """One response to `problem`, without EOS.

    Args:
        thinking: False writes a direct one.
        reordered: second looks take the operands in another order.
    """
    mix = mix or StyleMix()
    if not thinking or rng.random() < mix.direct:
        return [Piece(f"<think></think>{answer(problem.answer)}")]
    by_columns, is_checked = rng.random() < mix.columns, rng.random() < mix.check
    slips = (mix.short_slip, mix.column_slip) if is_checked else (0.0, 0.0)
    pieces, result = write_pass(problem, rng, by_columns=by_columns, slips=slips)
    pieces = [Piece("<think>"), *pieces]
    results = [result]
    while is_checked and sum(len(piece.text) for piece in pieces) < MAX_CHARACTERS / 2:
        turned = reordered and len(results) % 2 == 1
        again, result = write_pass(
            other_way(problem) if turned else problem, rng, by_columns=True, slips=slips
        )
        agrees = result in results
        results.append(result)
        lead = "; wait, " if len(results) == 2 else ", wait, "
        pieces += [Piece(lead), *again, Piece("; yes" if agrees else "; no")]
        if agrees and rng.random() >= mix.check_again:
            break
    return [*pieces, Piece(f"</think>{answer(result)}")]


def other_way(problem: Problem) -> Problem:
    """The same problem in another order.

    Sums: what is added from the last to the first, then what is taken away; products: backwards.
    """
    if problem.factors:
        return Problem(problem.terms[::-1], problem.factors[::-1])
    added = [term for term in problem.terms[::-1] if term > 0]
    return Problem((*added, *(term for term in problem.terms[::-1] if term < 0)))


def write_pass(
    problem: Problem, rng: random.Random, *, by_columns: bool, slips: tuple[float, float]
) -> tuple[list[Piece], int]:
    """One pass over a problem, steps joined by `; `, and the result that it reaches.

    Args:
        slips: probabilities that a short step and that a column is wrong.
    """
    pieces: list[Piece] = []

    def step(left: int, sign: str, right: int) -> int:
        if pieces:
            pieces.append(Piece("; "))
        worked, result = (_columns if by_columns else _short)(
            left, sign, right, rng, slips[by_columns]
        )
        pieces.extend(worked)
        return result

    parts = list(problem.terms)
    if problem.factors:
        parts = [step(a, "*", b) for a, b in zip(problem.terms, problem.factors, strict=True)]
    total = parts[0]
    for part in parts[1:]:
        # A slip may leave less than what is to be taken away: then the pass goes on from that.
        sign = "+" if part > 0 else "-"
        total = step(max(total, abs(part)) if sign == "-" else total, sign, abs(part))
    return pieces, total


def _short(
    left: int, sign: str, right: int, rng: random.Random, slip: float
) -> tuple[list[Piece], int]:
    """`347 + 85 = 432` in one go."""
    result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    is_slip = rng.random() < slip
    if is_slip:
        size = 10 ** rng.randrange(len(str(result)))
        result += size if rng.random() < 0.5 or result < size else -size
    return [Piece(f"{left} {sign} {right} = "), Piece(str(result), is_slip)], result


def _columns(
    left: int, sign: str, right: int, rng: random.Random, slip: float
) -> tuple[list[Piece], int]:
    """`347 + 85: 7 + 5 = 2', 4 + 8' = 3', 3 + 0' = 4, so 432`."""
    width = len(str(left)) if sign == "*" else max(len(str(left)), len(str(right)))
    upper = [int(digit) for digit in reversed(str(left).zfill(width))]
    lower = [right] * width if sign == "*" else list(map(int, reversed(str(right).zfill(width))))
    pieces, digits, carry = [Piece(f"{left} {sign} {right}: ")], "", 0
    for a, b in zip(upper, lower, strict=True):
        value = {"+": a + b + carry, "-": a - b - carry, "*": a * b + carry}[sign]
        is_slip = rng.random() < slip
        if is_slip:
            value += 1 if value < 0 or (sign == "*" and value % 10 < 9) else -1
            value = max(value, 0) if sign != "-" else value
        if sign == "*":
            pieces.append(Piece(f"{a} * {b}{f' + {carry}' if carry else ''} = "))
            pieces.append(Piece(str(value), is_slip))
            carry = value // 10
        else:
            pieces.append(Piece(f"{a} {sign} {b}{TICK if carry else ''} = "))
            carry = int(value > 9 or value < 0)
            pieces.append(Piece(f"{value % 10}{TICK if carry else ''}", is_slip))
        digits = f"{value % 10}{digits}"
        pieces.append(Piece(", "))
    if carry and sign != "-":
        digits = f"{carry}{digits}"
    return [*pieces, Piece(f"so {int(digits)}")], int(digits)


TICK = "'"
