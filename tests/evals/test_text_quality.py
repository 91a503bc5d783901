"""Repetition and full sentences by hand."""

import math

import pytest

from lenvm_rl.evals.text_quality import ends_sentence, repetition


def test_repetition_by_hand():
    assert repetition([1, 2, 3, 4, 5]) == 0  # 1234 2345
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)  # 1234 2341 3412 4123 1234
    assert repetition([7] * 13) == pytest.approx(9 / 10)  # one of ten is new
    assert repetition([1, 2, 1, 2, 1], n=2) == pytest.approx(2 / 4)
    assert repetition([1, 2, 3, 4]) == 0
    assert math.isnan(repetition([1, 2, 3])) and math.isnan(repetition([]))


@pytest.mark.parametrize(
    "text",
    [
        "It ended.",
        "Did it? \n",
        'He said "stop!"',
        "**Done.**",
        "(So it is.)",
        "“Quite so.”",
        "And then…",
        "它结束了。",
        "结束了吗？”",
        "（完！）",
        "The answer is 12.",
        "Meet me at 5 p.m.",
    ],
)
def test_sentences_that_end(text):
    assert ends_sentence(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It ended",
        "它结束",
        "First, it",
        "Two reasons:\n\n1. Cost\n2.",
        "3.",
        "A list:\n- **4.**",
        "half a \ufffd",
        "(So it is",
        '"',
        "one, two,",
    ],
)
def test_sentences_that_do_not(text):
    assert not ends_sentence(text)
