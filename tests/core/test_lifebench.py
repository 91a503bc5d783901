"""LIFEBench in tokens: deviation and score by hand for the three controls, failures, bad input."""

import math
import random

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import (
    CONTROLS,
    lifebench_deviation,
    lifebench_official_score,
    lifebench_score,
)

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


def by_formula(length, requested, control, *, percent):
    """One score in plain Python; `percent` is LIFEBench's program, without it LenVM's fork."""
    deviation = (length - requested) / requested * 100
    if (control == "at_most" and deviation < 0) or (control == "at_least" and deviation > 0):
        return 100.0
    d = deviation if percent else deviation / 100
    return 100 * math.exp(5 * d if d < 0 else -2 * d)


@pytest.mark.parametrize("control", CONTROLS)
def test_both_scorers_equal_their_formula_on_1000_lengths(control):
    rng = random.Random(2505)
    asked = [rng.choice([16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]) for _ in range(1000)]
    length = [max(0, round(n * rng.lognormvariate(0, 0.3))) for n in asked]
    length[:3] = asked[:3]  # met to the token
    tensors = torch.tensor(length, dtype=torch.float64), torch.tensor(asked, dtype=torch.float64)
    official = lifebench_official_score(*tensors, control=control)
    ours = lifebench_score(*tensors, control=control)
    for scores, percent in ((official, True), (ours, False)):
        pairs = zip(length, asked, strict=True)
        expected = [by_formula(x, n, control, percent=percent) for x, n in pairs]
        assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
        # digit for digit at any precision that is ever printed
        assert [f"{x:.10f}" for x in scores.tolist()] == [f"{x:.10f}" for x in expected]
    assert official.mean() < ours.mean(), "percent in the exponent punishes a hundredfold"


def test_the_official_scorer_by_hand():
    """1 % too long: exp(-2 x 1), where the formula of the paper has exp(-2 x 0.01)."""
    length, asked = torch.tensor([101, 99, 100]), torch.tensor([100, 100, 100])
    expected = torch.tensor([100 * math.exp(-2), 100 * math.exp(-5), 100], dtype=torch.float64)
    assert_close(lifebench_official_score(length, asked), expected)
    assert lifebench_official_score(length, asked, control="at_most")[1] == 100
    assert lifebench_official_score(length, asked, control="at_least")[0] == 100
    with pytest.raises(ValueError, match="unknown control"):
        lifebench_official_score(length, asked, control="less")


def test_bad_input():
    with pytest.raises(ValueError, match="unknown control 'less': use one of equal, at_most"):
        lifebench_score(LENGTH, REQUESTED, control="less")
    with pytest.raises(ValueError, match="same shape"):
        lifebench_score(LENGTH, REQUESTED[:1])
    with pytest.raises(ValueError, match="same shape"):
        lifebench_deviation(LENGTH, REQUESTED, failed=torch.tensor([True]))
