"""The written solutions: right without slips, wrong at about the stated rate with them."""

import random
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from lenvm_rl.demo.task import STYLES, Problem, grade, random_problem, sample_problems, style
from recipes.demo_policy.solutions import MAX_WORDS, StyleMix, bare, count_words, write

CAREFUL = StyleMix(terse_slip=0.0, wordy_slip=0.0)


def test_bare_and_count():
    assert bare(16) == "the answer is 16"
    assert count_words("12 + 7 = 19; the answer is 19") == 10
    assert count_words("wait, let me see.") == 6


def test_every_solution_without_slips_is_right():
    rng = random.Random(0)
    seen = set()
    for problem in sample_problems(500, seed=1):
        text = write(problem, rng, CAREFUL)
        assert grade(text, problem.answer), text
        assert count_words(text) <= MAX_WORDS
        assert "no" not in text.split()  # a re-check never disagrees when nothing slips
        seen.add(style(text))
    assert seen == set(STYLES)


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        (replace(CAREFUL, bare=1.0), "bare"),
        (replace(CAREFUL, bare=0.0, wordy=0.0, recheck=0.0), "terse"),
        (replace(CAREFUL, bare=0.0, wordy=1.0, recheck=0.0), "wordy"),
        (replace(CAREFUL, bare=0.0, recheck=0.999), "checking"),
    ],
)
def test_mix_chooses_the_style(mix, expected):
    rng = random.Random(0)
    for problem in sample_problems(20, seed=2, operands=(2, 8)):
        assert style(write(problem, rng, mix)) == expected


def test_exact_texts():
    problem = Problem((12, 7, -3))
    terse = replace(CAREFUL, bare=0.0, wordy=0.0, recheck=0.0)
    assert write(problem, random.Random(0), terse) == ("12 + 7 = 19; 19 - 3 = 16; the answer is 16")
    wordy = replace(terse, wordy=1.0, recap=0.0)
    assert write(problem, random.Random(0), wordy).startswith(
        "first we take 12 and add 7 to get 19. "
    )


def test_slips_come_at_the_stated_rate():
    rng = random.Random(0)
    mix = replace(CAREFUL, bare=0.0, wordy=0.0, recheck=0.0, terse_slip=0.1)
    problems = [random_problem(rng, 4) for _ in range(3000)]
    right = fmean(grade(write(problem, rng, mix), problem.answer) for problem in problems)
    # Three steps; two slips of opposite sign cancel now and then. 3 standard errors are 0.024.
    assert right == pytest.approx(0.9**3, abs=0.03)


def test_a_recheck_buys_accuracy():
    rng = random.Random(0)
    once = replace(StyleMix(), bare=0.0, recheck=0.0)
    problems = [random_problem(rng, 10) for _ in range(1500)]
    single = fmean(grade(write(problem, rng, once), problem.answer) for problem in problems)
    texts = [(write(problem, rng), problem) for problem in problems]
    checked = [grade(text, p.answer) for text, p in texts if style(text) == "checking"]
    assert fmean(checked) > single + 0.1


def test_lengths_spread_within_a_prompt():
    rng = random.Random(0)
    for problem in sample_problems(20, seed=5):
        lengths = [count_words(write(problem, rng)) + 1 for _ in range(300)]
        assert min(lengths) == 5
        assert stdev(lengths) > 0.5 * fmean(lengths)
