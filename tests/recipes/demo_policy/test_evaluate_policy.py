"""Figures of the demo policy, from samples made by hand."""

import pytest

from lenvm_rl.demo.task import Problem
from recipes.demo_policy.evaluate_policy import Sample, report

EASY, HARD = Problem((1, 2)), Problem((1,) * 9)


def test_report_by_hand():
    found = [
        Sample(EASY, "the answer is 3", 5, True),
        Sample(EASY, "1 + 2 = 3; the answer is 3", 11, True),
        Sample(HARD, "the answer is 8", 5, True),
        Sample(HARD, "wait, wait, wait", 15, False),
    ]
    figures = report(found)
    assert figures["samples"] == 4
    assert figures["problems"] == 2
    assert figures["accuracy"] == 0.5
    assert figures["mean_length"] == 9.0
    assert (figures["min_length"], figures["max_length"]) == (5.0, 15.0)
    assert figures["share_truncated"] == 0.25
    # Standard deviations of (5, 11) and (5, 15) are 6 and 10 over sqrt 2; means are 8 and 10.
    assert figures["std_over_mean_within_prompt"] == pytest.approx((6 / 8 + 1) / 8**0.5)
    assert figures["by_style"]["bare"]["accuracy"] == 0.5
    assert figures["by_style"]["bare"]["accuracy_2_3_operands"] == 1.0
    assert figures["by_style"]["bare"]["accuracy_8_or_more_operands"] == 0.0
    assert figures["by_style"]["wordy"]["accuracy"] is None
    assert figures["by_style"]["checking"]["share"] == 0.25
    assert figures["by_operands"]["2"]["accuracy"] == 1.0
    assert figures["by_operands"]["9"]["bare_accuracy"] == 0.0


def test_a_cut_response_is_wrong_even_if_it_reads_right():
    assert Sample(EASY, "the answer is 3", 5, True).right
    assert not Sample(EASY, "the answer is 3", 5, False).right
