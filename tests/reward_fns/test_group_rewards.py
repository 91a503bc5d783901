"""Rewards of one prompt's samples, against values worked out by hand."""

import math

import pytest

from reward_fns import alp, arora_zanette, grpo_lead, kimi, o1_pruner, shorter_better


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_kimi_ranks_between_shortest_and_longest():
    # lengths 10, 20, 30: ranks 1/2, 0, -1/2; wrong answers gain nothing from being short
    rewards = kimi.group_rewards([1, 1, 1], [10, 20, 30])
    assert rewards == pytest.approx([1.5, 1.0, 0.5])
    assert kimi.group_rewards([0, 0, 0], [10, 20, 30]) == pytest.approx([0.0, 0.0, -0.5])
    assert kimi.group_rewards([1, 0], [30, 10], weight=0.4) == pytest.approx([0.8, 0.0])


def test_kimi_without_spread_is_the_task_score():
    assert kimi.group_rewards([1, 0], [20, 20]) == [1.0, 0.0]
    assert kimi.group_rewards([1], [20]) == [1.0]


def test_o1_pruner_against_a_reference():
    # (100 - 50) / 50 + 5 * (1 - 0.6) = 3;  (100 - 200) / 200 + 5 * (0 - 0.6) = -3.5 -> -2
    rewards = o1_pruner.group_rewards(
        [1, 0], [50, 200], reference_tokens=100, reference_accuracy=0.6
    )
    assert rewards == pytest.approx([3.0, -2.0])
    # (100 - 10) / 10 = 9 -> 4
    assert o1_pruner.group_rewards(
        [1], [10], reference_tokens=100, reference_accuracy=1.0
    ) == pytest.approx([4.0])


def test_o1_pruner_takes_the_group_as_reference():
    # mean 60, accuracy 1/2, alpha 1: (60 - 40) / 40 + 1/2;  (60 - 80) / 80 - 1/2
    assert o1_pruner.group_rewards([1, 0], [40, 80], alpha=1.0) == pytest.approx([1.0, -0.75])


def test_o1_pruner_counts_an_empty_response_as_one_token():
    assert o1_pruner.group_rewards(
        [0], [0], reference_tokens=3, reference_accuracy=0.0
    ) == pytest.approx([2.0])


def test_arora_zanette_normalises_among_right_answers():
    # right: 10 and 30, mean 20, standard deviation 10; the wrong answer of 1,000 tokens is ignored
    rewards = arora_zanette.group_rewards([1, 1, 0], [10, 30, 1000], alpha=0.4)
    expected = [1 - 0.4 * sigmoid(-1), 1 - 0.4 * sigmoid(1), 0.0]
    assert rewards == pytest.approx(expected, abs=1e-7)


def test_arora_zanette_single_and_equal_right_answers_lose_half_of_alpha():
    assert arora_zanette.group_rewards([1, 0], [10, 20], alpha=0.2) == pytest.approx([0.9, 0.0])
    assert arora_zanette.group_rewards([1, 1], [7, 7], alpha=0.2) == pytest.approx([0.9, 0.9])
    assert arora_zanette.group_rewards([0, 0], [7, 9]) == [0.0, 0.0]


def test_shorter_better_measures_from_the_shortest_right_answer():
    # shortest correct answer 100; the wrong answer of 40 tokens does not set it
    rewards = shorter_better.group_rewards([1, 1, 0], [100, 300, 40])
    assert rewards == pytest.approx([2.0, 1.8, -0.06])


def test_shorter_better_measures_from_the_mean_where_none_is_right():
    assert shorter_better.group_rewards([0, 0], [100, 300], beta=0.01) == pytest.approx([-1, -1])


def test_alp_price_follows_the_solve_rate():
    # 3 of 4 right: 0.001 * 0.75 per token
    rewards = alp.group_rewards([1, 1, 1, 0], [100, 200, 300, 400], beta=0.001)
    assert rewards == pytest.approx([0.925, 0.85, 0.775, -0.3])
    # none right: 0.001 / 4 per token
    assert alp.group_rewards([0] * 4, [100] * 4, beta=0.001) == pytest.approx([-0.025] * 4)


def test_grpo_lead_decays_with_the_sample_deviation():
    # right: 10, 20, 30: mean 20, sample standard deviation 10
    rewards = grpo_lead.group_rewards([1, 1, 1, 0], [10, 20, 30, 5], alpha=0.1)
    expected = [math.exp(0.1), 1.0, math.exp(-0.1), -1.0]
    assert rewards == pytest.approx(expected, abs=1e-6)
    assert grpo_lead.group_rewards([1, 0], [10, 500]) == pytest.approx([1.0, -1.0])


def test_grpo_lead_leaves_short_prompts_alone():
    # the three shortest average 20 tokens
    lengths = [10, 20, 30, 1000]
    assert grpo_lead.group_rewards([1, 1, 0, 1], lengths, min_tokens=20) == [1.0, 1.0, -1.0, 1.0]
    shaped = grpo_lead.group_rewards([1, 1, 0, 1], lengths, min_tokens=19)
    assert shaped[0] > 1.0 > shaped[3]


@pytest.mark.parametrize(
    ("fn", "params"),
    [
        (kimi.group_rewards, {"weight": math.nan}),
        (o1_pruner.group_rewards, {"alpha": math.inf}),
        (o1_pruner.group_rewards, {"reference_tokens": 0}),
        (arora_zanette.group_rewards, {"alpha": 1.5}),
        (shorter_better.group_rewards, {"beta": math.nan}),
        (alp.group_rewards, {"beta": math.nan}),
        (grpo_lead.group_rewards, {"alpha": math.nan}),
    ],
)
def test_unusable_parameters_are_refused(fn, params):
    with pytest.raises(ValueError, match=next(iter(params))):
        fn([1, 0], [10, 20], **params)
