"""LIFEBench in tokens: deviation and score by hand for the three controls, failures, bad input."""

import math

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import CONTROLS, lifebench_deviation, lifebench_score

LENGTH = torch.tensor([50, 90, 100, 110, 200])
REQUESTED = torch.full((5,), 100)
SHORT = [100 * math.exp(-2.5), 100 * math.exp(-0.5)]
LONG = [100 * math.exp(-0.2), 100 * math.exp(-2.0)]


def test_deviation_by_hand():
    expected = torch.tensor([-0.5, -0.1, 0.0, 0.1, 1.0])
    assert_close(lifebench_deviation(LENGTH, REQUESTED), expected)


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ("equal", [*SHORT, 100.0, *LONG]),
        ("at_most", [100.0, 100.0, 100.0, *LONG]),
        ("at_least", [*SHORT, 100.0, 100.0, 100.0]),
    ],
)
def test_scores_by_hand(control, expected):
    assert_close(lifebench_score(LENGTH, REQUESTED, control=control), torch.tensor(expected))


@pytest.mark.parametrize("control", CONTROLS)
def test_failures_score_zero_and_deviate_fully(control):
    failed = torch.tensor([True, False, True, False, True])
    score = lifebench_score(LENGTH, REQUESTED, control=control, failed=failed)
    unaffected = lifebench_score(LENGTH, REQUESTED, control=control)
    assert (score[failed] == 0).all()
    assert torch.equal(score[~failed], unaffected[~failed])
    deviation = lifebench_deviation(LENGTH, REQUESTED, failed=failed)
    assert (deviation[failed] == -1).all()
    assert torch.equal(deviation[~failed], lifebench_deviation(LENGTH, REQUESTED)[~failed])
    # The length of a failed generation is unknown: NaN there is ignored.
    unknown = LENGTH.float().masked_fill(failed, math.nan)
    assert torch.equal(lifebench_score(unknown, REQUESTED, control=control, failed=failed), score)


def test_an_empty_answer_is_not_a_failure():
    empty, asked = torch.tensor([0]), torch.tensor([64])
    assert lifebench_score(empty, asked, control="at_most").item() == 100.0
    expected = 100 * math.exp(-5)
    assert lifebench_score(empty, asked, control="equal").item() == pytest.approx(expected)


def test_bad_input():
    with pytest.raises(ValueError, match="unknown control 'less': use one of equal, at_most"):
        lifebench_score(LENGTH, REQUESTED, control="less")
    with pytest.raises(ValueError, match="same shape"):
        lifebench_score(LENGTH, REQUESTED[:1])
    with pytest.raises(ValueError, match="same shape"):
        lifebench_deviation(LENGTH, REQUESTED, failed=torch.tensor([True]))
