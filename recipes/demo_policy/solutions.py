"""Reasoning in several styles: the text that the demo policy learns to write.

For one problem the writer chooses at random (probabilities in `StyleMix`):

    bare      the answer is 16
    terse     12 + 7 = 19; 19 - 3 = 16; the answer is 16
    wordy     first we take 12 and add 7 to get 19. then we take 19 and ... the answer is 16
    checking  (terse or wordy), then any number of times: wait, let me check that again. (terse or
              wordy) yes, that is right. | no, that is not right.

The writer slips on purpose: each step is wrong with a small probability, smaller when it is spelled
out. A policy that imitates it is not always right at temperature 1, whatever its size. In these
texts a re-check buys accuracy; how much of that a trained policy keeps is in the README.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from lenvm_rl.demo.task import MAX_TERM, MAX_TOTAL, Problem

MAX_WORDS = 400  # a response never grows past this by another re-check, the answer included
WAIT = ("wait, let me check that again.", "wait, let me see.", "hmm, wait, is that right?")
AGREE = ("yes, that is right.", "yes.")
DISAGREE = ("no, that is not right.", "no.")


@dataclass(frozen=True, kw_only=True)
class StyleMix:
    """Probabilities of the writer's choices, each in [0, 1]."""

    bare: float = 0.05
    """a response is the answer alone"""
    wordy: float = 0.35
    """a first pass is spelled out (given that the response is not bare)"""
    recheck: float = 0.22
    """one more pass follows a pass that agrees with the one before it"""
    wordy_recheck: float = 0.20
    """a re-check is spelled out"""
    recap: float = 0.15
    """a spelled-out step is followed by "so now we have ..." """
    terse_slip: float = 0.045
    """a terse step has a wrong result"""
    wordy_slip: float = 0.02
    """a spelled-out step has a wrong result"""


def count_words(text: str) -> int:
    """Number of words, numbers and signs, which is the policy's number of tokens without EOS."""
    return len(re.findall(r"\d+|[a-z]+|[^\s\w]", text))


def bare(answer: int) -> str:
    """The last words of every response, and all the words of a bare one."""
    return f"the answer is {answer}"


def write(problem: Problem, rng: random.Random, mix: StyleMix | None = None) -> str:
    """Write one response to `problem`: text without EOS, at most about `MAX_WORDS` words."""
    mix = mix or StyleMix()
    if rng.random() < mix.bare:
        return bare(problem.answer)
    text, total = _work(problem, rng, mix, spelled_out=rng.random() < mix.wordy)
    agrees = True
    while not agrees or rng.random() < mix.recheck:
        again, new_total = _work(problem, rng, mix, spelled_out=rng.random() < mix.wordy_recheck)
        agrees = new_total == total
        verdict = rng.choice(AGREE if agrees else DISAGREE)
        longer = f"{text} {rng.choice(WAIT)} {again} {verdict}"
        if count_words(longer) + 4 > MAX_WORDS:
            break
        text, total = longer, new_total
    return f"{text} {bare(total)}"


def facts(rng: random.Random, count: int, *, spelled_out: bool) -> str:
    """`count` unrelated steps in the words of a terse or a spelled-out pass, all of them right."""
    parts = []
    for _ in range(count):
        total = rng.randint(0, MAX_TOTAL)
        term = rng.randint(1, MAX_TERM) * rng.choice((-1, 1))
        if not 0 <= total + term <= MAX_TOTAL:
            term = -term
        if spelled_out:
            parts.append(_spell_out(rng.choice(("then", "next")), total, term, total + term))
        else:
            parts.append(_equation(total, term, total + term))
    return " ".join(parts)


def _work(
    problem: Problem, rng: random.Random, mix: StyleMix, *, spelled_out: bool
) -> tuple[str, int]:
    """One pass over the chain: its text and the result it reaches, slips included."""
    parts: list[str] = []
    total = problem.terms[0]
    for index in range(1, problem.operands):
        result = total + problem.terms[index]
        if rng.random() < (mix.wordy_slip if spelled_out else mix.terse_slip):
            result = _slip(result, problem.terms[index + 1 :], rng)
        if spelled_out:
            start = "first" if index == 1 else rng.choice(("then", "next"))
            parts.append(_spell_out(start, total, problem.terms[index], result))
            if rng.random() < mix.recap:
                parts.append(f"so now we have {result}.")
        else:
            parts.append(_equation(total, problem.terms[index], result))
        total = result
    return " ".join(parts), total


def _equation(total: int, term: int, result: int) -> str:
    return f"{total} {'+' if term > 0 else '-'} {abs(term)} = {result};"


def _spell_out(start: str, total: int, term: int, result: int) -> str:
    verb = "add" if term > 0 else "subtract"
    return f"{start} we take {total} and {verb} {abs(term)} to get {result}."


def _slip(result: int, rest: tuple[int, ...], rng: random.Random) -> int:
    """A wrong result, off by 1 or 10, from which the rest of the chain still stays in range."""
    slips = [wrong for off in (-10, -1, 1, 10) if _fits(wrong := result + off, rest)]
    return rng.choice(slips) if slips else result


def _fits(total: int, rest: tuple[int, ...]) -> bool:
    if not 0 <= total <= MAX_TOTAL:
        return False
    for term in rest:
        total += term
        if not 0 <= total <= MAX_TOTAL:
            return False
    return True
