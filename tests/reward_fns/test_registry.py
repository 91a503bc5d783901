"""The registry: names, kinds, and one way to call them all."""

import inspect
import subprocess
import sys

import pytest

from reward_fns import LENGTH_REWARDS, get_length_reward
from scripts.bench.grpo.strengths import STRENGTHS

PUBLISHED = {
    "l1_exact", "l1_max", "kimi", "o1_pruner", "arora_zanette", "dapo_overlong", "truncation",
    "laser", "laser_d", "shorter_better", "alp", "grpo_lead", "hapo", "a_dlp", "leash", "cosine",
}  # fmt: skip


def test_every_published_reward_is_registered():
    assert set(LENGTH_REWARDS) == PUBLISHED


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_settings_name_real_arguments(name):
    reward = get_length_reward(name)
    arguments = inspect.signature(reward.fn).parameters
    strengths = STRENGTHS[name]
    for argument in (*strengths.params(1.0), *reward.columns):
        assert argument in arguments
    assert len(set(strengths.values)) == 3
    # whatever is not given by the data has the source's default
    needed = {n for n, p in arguments.items() if p.default is p.empty and p.kind != p.VAR_KEYWORD}
    assert needed <= {"correct", "tokens"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_reward_says_where_it_comes_from(name):
    module = inspect.getmodule(inspect.unwrap(get_length_reward(name).fn))
    assert "arXiv" in module.__doc__
    assert "r = " in module.__doc__ or "r      = " in module.__doc__


def test_columns_reach_the_formula():
    bound = get_length_reward("l1_exact").bind(alpha=0.01)
    assert bound.columns == ("target",)
    rewards = bound.group_rewards([1, 1], [40, 50], columns={"target": 30, "unknown": 7})
    assert rewards == pytest.approx([0.9, 0.8])
    with pytest.raises(ValueError, match="target"):
        bound.group_rewards([1], [40])
    assert get_length_reward("l1_exact").bind(target=40).columns == ()


def test_rewards_without_state_have_an_empty_one():
    bound = get_length_reward("kimi").bind()
    assert bound.update([1], [10], ["a"]) == {}
    assert bound.state_dict() == {}
    bound.load_state_dict({})


def test_state_goes_through_the_bound_reward():
    bound = get_length_reward("hapo").bind()
    bound.update([1], [10], ["a"])
    other = get_length_reward("hapo").bind()
    other.load_state_dict(bound.state_dict())
    assert other.group_rewards([1], [20], prompt_id="a") == pytest.approx([0.3])


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="choose one of a_dlp, alp"):
        get_length_reward("brevity")


def test_one_count_per_score():
    with pytest.raises(ValueError, match="2 task scores but 1 token counts"):
        get_length_reward("kimi").bind().group_rewards([1, 0], [10])


def test_importing_the_package_is_light():
    code = (
        "import sys, reward_fns, reward_fns.demo, reward_fns.code_tests, reward_fns.math_answer\n"
        "heavy = {'torch', 'numpy', 'transformers', 'verl', 'sympy', 'math_verify'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
