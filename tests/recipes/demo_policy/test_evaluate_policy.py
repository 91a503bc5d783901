"""Figures of the demo policy, from answers made by hand."""

import pytest

from lenvm_rl.demo.task import Problem
from recipes.demo_policy.evaluate_policy import (
    WAYS,
    Answer,
    by_level,
    majority,
    shortest_correct,
    summary,
)

EASY, HARD = Problem((1, 2)), Problem((9999, 1, 1, 1))  # 4 + 5 + 5 columns


def says(problem, number, length=7, *, finished=True):
    return Answer(problem, f"<think></think>the answer is {number}", length, finished)


def test_a_truncated_answer_is_wrong_even_if_it_reads_right():
    assert says(EASY, 3).correct
    assert not says(EASY, 3, finished=False).correct
    assert not says(EASY, 4).correct


def test_accuracy_and_its_interval_are_over_problems():
    answers = [says(EASY, 3, 7), says(EASY, 4, 13), says(HARD, 1, 20), says(HARD, 1, 20)]
    found = summary(answers)
    # Shares .5 and 0: a bootstrap of two problems draws means 0, .25 and .5.
    assert (found["problems"], found["accuracy"], found["length"]) == (2, 0.25, 15.0)
    assert (found["low"], found["high"]) == (0.0, 0.5)
    levels = by_level(answers)
    assert list(levels) == ["all", "easy", "hard"]
    assert levels["all"] == found
    assert (levels["easy"]["accuracy"], levels["hard"]["accuracy"]) == (0.5, 0.0)
    assert (levels["easy"]["length"], levels["hard"]["length"]) == (10.0, 20.0)


def test_the_majority_counts_final_answers():
    votes = [says(EASY, n) for n in (4, 3, 3)] + [says(HARD, n) for n in (10002, 5, 5)]
    assert majority(votes, 3) == 0.5
    assert majority(votes[:3], 3) == 1.0


def test_the_shortest_correct_style_is_counted_for_each_problem():
    styles = {way: [says(EASY, 3, 50), says(HARD, 1, 50), says(EASY, 4, 50)] for way in WAYS}
    styles["columns"][1] = says(HARD, 10002, 60)
    styles["columns, checked"][1] = says(HARD, 10002, 90)
    styles["direct"][0] = says(EASY, 3, 7)
    found = shortest_correct(styles)
    assert {way: share for way, share in found.items() if share} == {
        "direct": pytest.approx(1 / 3),
        "columns": pytest.approx(1 / 3),
        "none": pytest.approx(1 / 3),
    }
