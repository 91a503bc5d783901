"""Laws of all registered length rewards: finite for garbage, ordered by length and correctness."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_fns import LENGTH_REWARDS, get_length_reward
from scripts.bench.grpo.strengths import STRENGTHS

NAMES = sorted(LENGTH_REWARDS)
# L1-Exact pays for deviation on both sides of its target
SHORTER_IS_NO_WORSE = [name for name in NAMES if name != "l1_exact"]
EVERY_REWARD = pytest.mark.parametrize("name", NAMES)

GROUPS = st.lists(st.tuples(st.booleans(), st.integers(0, 500)), min_size=1, max_size=8)
GARBAGE_SCORE = st.one_of(st.floats(), st.integers(-3, 3), st.booleans(), st.none(), st.text())
GARBAGE_COUNT = st.one_of(st.floats(), st.integers(-(10**30), 10**30))
GARBAGE = st.lists(st.tuples(GARBAGE_SCORE, GARBAGE_COUNT), min_size=1, max_size=6)


def bench_reward(name, level=1, *, history=None):
    """A reward as the benchmark sets it, after a batch that gives stateful ones something."""
    strengths = STRENGTHS[name]
    bound = get_length_reward(name).bind(**strengths.params(strengths.values[level]))
    for _ in range(6 if history else 0):
        bound.update(*history)
    return bound


def rewards_of(bound, group):
    correct, tokens = zip(*group, strict=True)
    return bound.group_rewards(list(correct), list(tokens), prompt_id="prompt")


HISTORY = ([1, 1, 0, 1], [20, 100, 20, 60], ["prompt"] * 4)


@EVERY_REWARD
@settings(max_examples=40, deadline=None)
@given(group=GARBAGE, level=st.integers(0, 2))
def test_garbage_gives_finite_rewards(name, group, level):
    bound = bench_reward(name, level, history=HISTORY)
    rewards = rewards_of(bound, group)
    assert len(rewards) == len(group)
    assert all(isinstance(reward, float) and math.isfinite(reward) for reward in rewards)
    correct, tokens = zip(*group, strict=True)
    metrics = bound.update(list(correct), list(tokens), ["prompt"] * len(group))
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(math.isfinite(reward) for reward in rewards_of(bound, group))


@pytest.mark.parametrize("name", SHORTER_IS_NO_WORSE)
@settings(max_examples=40, deadline=None)
@given(group=GROUPS, level=st.integers(0, 2))
def test_among_right_answers_a_shorter_one_earns_no_less(name, group, level):
    rewards = rewards_of(bench_reward(name, level, history=HISTORY), group)
    right = sorted(
        (tokens, reward)
        for (correct, tokens), reward in zip(group, rewards, strict=True)
        if correct
    )
    for (_, shorter), (_, longer) in zip(right, right[1:], strict=False):
        assert shorter >= longer - 1e-9


@EVERY_REWARD
@settings(max_examples=40, deadline=None)
@given(group=GROUPS, tokens=st.integers(0, 500), level=st.integers(0, 2))
def test_a_right_answer_earns_no_less_than_a_wrong_one_of_its_length(name, group, tokens, level):
    bound = bench_reward(name, level, history=HISTORY)
    *_, right, wrong = rewards_of(bound, [*group, (True, tokens), (False, tokens)])
    assert right >= wrong


@EVERY_REWARD
@settings(max_examples=30, deadline=None)
@given(group=GROUPS, data=st.data())
def test_the_order_of_samples_does_not_matter(name, group, data):
    order = data.draw(st.permutations(range(len(group))))
    bound = bench_reward(name, history=HISTORY)
    rewards = rewards_of(bound, group)
    shuffled = rewards_of(bound, [group[number] for number in order])
    assert shuffled == pytest.approx([rewards[number] for number in order])


@EVERY_REWARD
def test_stronger_settings_press_harder(name):
    group = [(1, 20), (1, 100), (0, 20), (1, 60)]

    def pressure(level):
        """What 80 tokens cost a correct answer, in units of what being right is worth."""
        short, long, wrong, _ = rewards_of(bench_reward(name, level, history=HISTORY), group)
        return (short - long) / (short - wrong)

    weak, middle, strong = (pressure(level) for level in range(3))
    assert 0.0 <= weak <= middle <= strong
    assert strong > weak


@EVERY_REWARD
@pytest.mark.parametrize(
    "group",
    [
        [(1, 40)],
        [(0, 40)],
        [(1, 0)],
        [(0, 0), (1, 0)],
        [(1, 40)] * 4,
        [(0, 40)] * 4,
        [(1, math.nan), (1, 40)],
        [(1, math.nan)],
    ],
    ids=["one", "one wrong", "empty", "all empty", "equal", "equal wrong", "nan", "all nan"],
)
def test_degenerate_groups_have_defined_rewards(name, group):
    bound = bench_reward(name)
    rewards = rewards_of(bound, group)
    assert all(math.isfinite(reward) for reward in rewards)
    equal = [reward for sample, reward in zip(group, rewards, strict=True) if sample == group[-1]]
    assert len(set(equal)) == 1


@EVERY_REWARD
def test_an_unusable_count_earns_nothing_and_disturbs_nobody(name):
    bound = bench_reward(name, history=HISTORY)
    usable = [(1, 20), (0, 70), (1, 90)]
    with_garbage = rewards_of(bound, [(1, math.nan), *usable, (1, -5)])
    assert with_garbage == [0.0, *rewards_of(bound, usable), 0.0]


@EVERY_REWARD
@pytest.mark.parametrize("tokens", [[40, None], ["forty", 40]])
def test_missing_counts_are_refused_with_the_remedy(name, tokens):
    with pytest.raises(ValueError, match="token ids, never characters"):
        bench_reward(name).group_rewards([1, 0], tokens, prompt_id="prompt")
