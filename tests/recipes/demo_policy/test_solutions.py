"""The written solutions: right in every style, and slips that only checked ones have."""

import random
import re
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from lenvm_rl.demo.task import FAMILIES, STYLES, Problem, grade, sample_problems, style
from recipes.demo_policy.solutions import MAX_CHARACTERS, StyleMix, other_way, write, write_pass

CAREFUL = StyleMix(short_slip=0.0, column_slip=0.0)
NO_SLIPS = (0.0, 0.0)


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def written(problem, rng, mix=None, **how):
    return text_of(write(problem, rng, mix, **how))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_solution_without_slips_is_right(family):
    rng, seen = random.Random(0), set()
    for problem in sample_problems(400, seed=1, family=family):
        pieces = write(problem, rng, CAREFUL)
        text = text_of(pieces)
        assert grade(text, problem.answer), text
        assert not any(piece.is_slip for piece in pieces)
        assert "no" not in re.findall("[a-z]+", text)  # a check never disagrees
        seen.add(style(text))
    assert seen == set(STYLES)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_checked_is_right_and_has_no_slip(family):
    rng = random.Random(0)
    for problem in sample_problems(300, seed=2, family=family):
        pieces = write(problem, rng, replace(StyleMix(), check=0.0))
        assert grade(text_of(pieces), problem.answer)
        assert not any(piece.is_slip for piece in pieces)


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (replace(CAREFUL, direct=1.0), "direct"),
        (replace(CAREFUL, direct=0.0, columns=0.0, check=0.0), "short"),
        (replace(CAREFUL, direct=0.0, columns=1.0, check=0.0), "columns"),
        (replace(CAREFUL, direct=0.0, check=1.0), "checked"),
    ],
)
def test_mix_chooses_the_style(mix, expected):
    rng = random.Random(0)
    for problem in sample_problems(20, seed=2):
        assert style(written(problem, rng, mix)) == expected
        assert style(written(problem, rng, mix, thinking=False)) == "direct"


def test_exact_texts():
    problem, rng = Problem((347, 85, -112)), random.Random(0)
    assert written(problem, rng, thinking=False) == "<think></think>the answer is 320"
    short = replace(CAREFUL, direct=0.0, columns=0.0, check=0.0)
    steps = "347 + 85 = 432; 432 - 112 = 320"
    assert written(problem, rng, short) == f"<think>{steps}</think>the answer is 320"
    again = "347 + 85: 7 + 5 = 2', 4 + 8' = 3', 3 + 0' = 4, so 432; "
    again += "432 - 112: 2 - 2 = 0, 3 - 1 = 2, 4 - 1 = 3, so 320"
    checked = replace(short, check=1.0, check_again=0.0)
    assert written(problem, rng, checked) == (
        f"<think>{steps}; wait, {again}; yes</think>the answer is 320"
    )


@pytest.mark.parametrize(
    ("problem", "text", "result"),
    [
        (Problem((7, -3)), "7 - 3: 7 - 3 = 4, so 4", 4),
        (
            Problem((1000, -1)),
            "1000 - 1: 0 - 1 = 9', 0 - 0' = 9', 0 - 0' = 9', 1 - 0' = 0, so 999",
            999,
        ),
        (
            Problem((95, 7)),
            "95 + 7: 5 + 7 = 2', 9 + 0' = 0', so 102",
            102,
        ),
        (
            Problem((89, 5), (7, 2)),
            "89 * 7: 9 * 7 = 63, 8 * 7 + 6 = 62, so 623; 5 * 2: 5 * 2 = 10, so 10; "
            "623 + 10: 3 + 0 = 3, 2 + 1 = 3, 6 + 0 = 6, so 633",
            633,
        ),
    ],
)
def test_columns_by_hand(problem, text, result):
    rng = random.Random(0)
    pieces, found = write_pass(problem, rng, by_columns=True, slips=NO_SLIPS)
    assert (text_of(pieces), found) == (text, result)
    assert found == problem.answer


def test_a_second_look_takes_another_way_to_the_same_answer():
    assert other_way(Problem((347, 85, -112, 9))) == Problem((9, 85, 347, -112))
    assert other_way(Problem((34, 5), (6, 7))) == Problem((5, 34), (7, 6))
    for family in FAMILIES:
        for problem in sample_problems(100, seed=4, family=family):
            assert other_way(problem).answer == problem.answer


@pytest.mark.parametrize("by_columns", [False, True])
def test_slips_come_at_the_stated_rate_and_are_marked(by_columns):
    rng, slips, marked = random.Random(0), 0, 0
    slip, problems = (0.02 if by_columns else 0.25), sample_problems(1000, seed=3, digits=(3, 4))
    for problem in problems:
        pieces, result = write_pass(
            problem, rng, by_columns=by_columns, slips=(0.0, slip) if by_columns else (slip, 0.0)
        )
        marks = sum(piece.is_slip for piece in pieces)
        slips, marked = slips + marks, marked + (marks > 0)
        # Without a mark it is right; with one it is wrong, but for slips that cancel.
        assert result == problem.answer if not marks else all(p.text for p in pieces)
        assert text_of(pieces).endswith(str(result))
    steps = sum(p.columns if by_columns else len(p.terms) - 1 for p in problems)
    # A slip may move the width of what follows: columns are counted without slips.
    assert slips / steps == pytest.approx(slip, rel=0.15)
    assert 0 < marked < len(problems)


def test_a_check_finds_slips():
    """What one pass with slips gets right, and what is left of them after the checks."""
    rng, mix = random.Random(0), replace(StyleMix(), direct=0.0, check=1.0)
    problems = sample_problems(400, seed=5, digits=(2, 4))
    once = fmean(
        write_pass(p, rng, by_columns=False, slips=(mix.short_slip, 0.0))[1] == p.answer
        for p in problems
    )
    texts = [written(problem, rng, replace(mix, columns=0.0)) for problem in problems]
    right = fmean(grade(text, p.answer) for text, p in zip(texts, problems, strict=True))
    assert once < 0.7 and right > 0.9
    assert sum("; no, wait, " in text for text in texts) > 100
    assert all(len(text) < MAX_CHARACTERS + 300 for text in texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_spread_within_a_prompt(family):
    rng, spreads = random.Random(0), []
    for problem in sample_problems(40, seed=5, family=family):
        lengths = [len(written(problem, rng)) for _ in range(90)]
        assert min(lengths) == len("<think></think>the answer is ") + len(str(problem.answer))
        spreads.append(stdev(lengths) / fmean(lengths))
    assert fmean(spreads) > 0.5
