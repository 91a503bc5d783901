"""What the demo policy is for: longer answers are correct more often, at no temperature too."""

from functools import cache

import pytest

from lenvm_rl.demo import policy_path, task
from recipes.demo_policy.evaluate_policy import (
    MAJORITY,
    Policy,
    sampled_lengths,
    shortest_correct,
    summary,
)

pytestmark = pytest.mark.slow
PROBLEMS = 64


@cache
def policy():
    return Policy(policy_path())


@cache
def styles(family):
    return policy().by_style(task.sample_problems(PROBLEMS, seed=11, family=family))


@pytest.mark.parametrize("family", task.FAMILIES)
def test_longer_styles_are_correct_more_often_when_greedy(family):
    found = {way: summary(answers) for way, answers in styles(family).items()}
    assert found["direct"]["accuracy"] + 0.2 < found["short"]["accuracy"]
    assert found["short"]["accuracy"] < found["columns"]["accuracy"]
    assert found["short"]["accuracy"] < found["short, checked"]["accuracy"]
    assert found["direct"]["length"] < found["short"]["length"] < found["columns"]["length"]
    best = shortest_correct(styles(family))
    assert min(best["direct"], best["short"], best["columns"]) > 0.03


def test_no_temperature_reaches_the_longest_style():
    problems = task.sample_problems(PROBLEMS, seed=11)
    longest = summary(styles("sums")["columns, checked"])["accuracy"]
    for temperature in (0.0, 0.6, 1.0):
        found = summary(policy().answer(problems, temperature=temperature, seed=1))["accuracy"]
        assert found < min(0.9, longest)


def test_lengths_vary_within_a_prompt_and_have_a_tail():
    problems = [p for p in task.sample_problems(24, seed=12) for _ in range(MAJORITY)]
    found = sampled_lengths(policy().answer(problems, temperature=1.0, seed=2))
    assert found["percentiles"]["min"] < 12
    assert found["percentiles"]["max"] > 300
    assert found["std_over_mean_within_prompt"] > 0.5
    assert found["share_truncated"] < 0.02
    assert all(share > 0 for share in found["styles"].values())
