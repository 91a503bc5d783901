"""Rewards that learn from batches: worked examples, and going on from a checkpoint."""

import json
import math

import pytest

from reward_fns.a_dlp import ADlp
from reward_fns.hapo import Hapo
from reward_fns.laser import LaserD, difficulty
from reward_fns.leash import Leash


def test_hapo_rewards_by_the_history_before_the_batch():
    hapo = Hapo()
    assert hapo.group_rewards([1, 0], [40, 80], prompt_id="a") == [1.0, 0.0]
    assert hapo.update([1, 1, 0], [60, 40, 10], ["a", "a", "a"]) == {"prompts_with_history": 1}
    assert hapo.shortest == {"a": 40.0}
    # h = 40: n = 20 -> cos(pi/4); n = 40 -> 0; n = 80 -> -1, cut at -0.7; n = 200 likewise
    rewards = hapo.group_rewards([1, 1, 1, 1], [20, 40, 80, 200], prompt_id="a")
    assert rewards == pytest.approx([1 + math.sqrt(0.5), 1.0, 0.3, 0.3])
    assert hapo.group_rewards([0, 0, 0], [20, 40, 80], prompt_id="a") == pytest.approx([0, 0, -1])
    assert hapo.group_rewards([1], [20], prompt_id="another") == [1.0]


def test_hapo_weight_and_minimum():
    hapo = Hapo(weight=0.5)
    hapo.update([1, 1], [40, 50], ["a", "a"])
    hapo.update([1], [90], ["a"])  # longer: the minimum stays
    assert hapo.group_rewards([1, 0], [80, 80], prompt_id="a") == pytest.approx([0.65, -0.5])


def test_hapo_needs_to_know_the_prompt():
    with pytest.raises(ValueError, match="prompt_id"):
        Hapo().group_rewards([1], [10])


def test_a_dlp_price_follows_accuracy():
    a_dlp = ADlp(reference=0.5, step=0.01, price=0.02)
    assert a_dlp.group_rewards([1, 0], [10, 20]) == pytest.approx([0.8, -0.4])
    # accuracy 1: 0.02 + 0.01 * 0.5
    assert a_dlp.update([1, 1], [10, 20], ["a", "b"]) == pytest.approx(
        {"price": 0.025, "accuracy": 1.0}
    )
    for _ in range(10):  # accuracy 0 lowers it by 0.005 each time, to 0 and no further
        a_dlp.update([0, 0], [10, 20], ["a", "b"])
    assert a_dlp.price == 0.0


def test_leash_multiplier_follows_the_mean_length():
    leash = Leash(target_tokens=100, step=0.1, multiplier=0.5, largest=0.6)
    # only what is over the target costs; never below -1
    rewards = leash.group_rewards([1, 1, 0, 0], [50, 150, 150, 500])
    assert rewards == pytest.approx([1.0, 0.75, -0.25, -1.0])
    # mean 150: 0.5 + 0.1 * 0.5
    assert leash.update([1, 1], [100, 200], ["a", "b"]) == pytest.approx(
        {"multiplier": 0.55, "excess": 0.5}
    )
    leash.update([1], [500], ["a"])
    assert leash.multiplier == 0.6
    leash.update([1], [50], ["a"])
    assert leash.multiplier == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("rate", "level"),
    [
        (1.0, "easy"),
        (2 / 3, "easy"),
        (0.5, "medium"),
        (1 / 3, "medium"),
        (0.3, "hard"),
        (0, "hard"),
    ],
)
def test_laser_d_difficulties(rate, level):
    assert difficulty(rate) == level


def laser_d(**params):
    return LaserD(shortest=10, longest=50, step=10, samples=8, **{"every": 1, **params})


def test_laser_d_starts_from_the_longest_target():
    reward = laser_d()
    assert reward.group_rewards([1, 1, 0], [50, 51, 10]) == [1.5, 1.0, -0.5]


def test_laser_d_chooses_the_smallest_target_with_a_right_answer_in_reach():
    reward = laser_d()
    # easy prompt, 5 responses of 10, 20, 30, 40, 50 tokens, all right: 5 correct answers at least
    # in a group of 8, so a coverage of 1/5 is enough: 10 tokens. Hard prompt, one correct answer
    # expected: all must be covered: 50 tokens.
    easy = ([1] * 5, [10, 20, 30, 40, 50], ["easy"] * 5)
    hard = ([0] * 5, [10, 20, 30, 40, 50], ["hard"] * 5)
    targets = reward.update(*(a + b for a, b in zip(easy, hard, strict=True)))
    # no medium prompt was monitored: its target stays at the longest
    assert targets == {"target_easy": 10, "target_medium": 50, "target_hard": 50}
    assert reward.group_rewards([1, 1, 1], [10, 11, 50]) == [1.5, 1.0, 1.0]
    assert reward.group_rewards([1, 0, 0, 0], [50, 9, 9, 9]) == [1.5, -0.5, -0.5, -0.5]


def test_laser_d_medium_prompts_expect_two_right_answers():
    reward = laser_d()
    # 4 responses, half right: floor(8/3) = 2, so half of them must be covered: 20 tokens
    assert reward.update([1, 0, 1, 0], [10, 20, 30, 40], ["m"] * 4)["target_medium"] == 20


def test_laser_d_changes_targets_every_few_batches_only():
    reward = laser_d(every=3)
    batch = ([1, 1], [10, 10], ["a", "a"])
    assert [reward.update(*batch)["target_easy"] for _ in range(3)] == [50, 50, 10]


@pytest.mark.parametrize("build", [Hapo, laser_d])
def test_a_batch_names_every_samples_prompt(build):
    with pytest.raises(ValueError, match="1 prompt ids but 2 token counts"):
        build().update([1, 0], [10, 20], ["a"])


STATEFUL = [
    (lambda: Hapo(), "hapo"),
    (lambda: ADlp(), "a_dlp"),
    (lambda: Leash(target_tokens=30), "leash"),
    (lambda: laser_d(every=2), "laser_d"),
]


@pytest.mark.parametrize(("build", "_"), STATEFUL, ids=[name for _, name in STATEFUL])
def test_going_on_from_a_state_dict_changes_nothing(build, _):
    batches = [
        ([1, 1, 0, 1], [10, 20, 30, 40], ["a", "a", "b", "b"]),
        ([1, 0, 0, 1], [15, 25, 35, 5], ["a", "b", "b", "c"]),
        ([0, 1, 1, 1], [45, 55, 12, 8], ["c", "c", "a", "a"]),
    ]
    whole, resumed = build(), build()
    for reward in (whole, resumed):
        reward.update(*batches[0])
    state = json.loads(json.dumps(resumed.state_dict()))  # a checkpoint keeps plain numbers
    resumed = build()
    resumed.load_state_dict(state)
    for correct, tokens, prompt_ids in batches[1:]:
        args = (correct, tokens)
        assert whole.group_rewards(*args, prompt_id="a") == resumed.group_rewards(
            *args, prompt_id="a"
        )
        assert whole.update(correct, tokens, prompt_ids) == resumed.update(
            correct, tokens, prompt_ids
        )
    assert whole.state_dict() == resumed.state_dict()


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Hapo(weight=1.1), "weight"),
        (lambda: ADlp(reference=62), "reference"),
        (lambda: ADlp(step=-1e-3), "step"),
        (lambda: Leash(target_tokens=0), "target_tokens"),
        (lambda: Leash(multiplier=2.0, largest=1.0), "multiplier"),
        (lambda: LaserD(every=0), "every"),
        (lambda: LaserD(shortest=100, longest=10), "shortest"),
        (lambda: LaserD(bonus=math.nan), "bonus"),
    ],
)
def test_unusable_parameters_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()
