"""Do reward functions see true token counts, and do group rewards land on the last tokens?"""

import asyncio

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

from lenvm_rl.verl.group_reward import GroupReward
from lenvm_rl.verl.plugin import REWARD_MANAGER
from lenvm_rl.verl.reward_manager import LengthRewardManager
from tests.tiny import make_tokenizer
from tests.verl.test_length_terms import batch


def sample(tokens=5, width=8, extra_info=None):
    """A response of `tokens` tokens, EOS included, padded on the right to `width`."""
    prompts = torch.full((1, 3), 7)
    responses = torch.tensor([[9] * (tokens - 1) + [1] + [0] * (width - tokens)])
    attention = torch.tensor([[1] * (3 + tokens) + [0] * (width - tokens)])
    cells = {
        "data_source": "toy",
        "reward_model": {"ground_truth": "w9"},
        "extra_info": extra_info,
        "tool_extra_fields": {"finish_reason": "stop"},
    }
    fields = {}
    for name, cell in cells.items():
        fields[name] = np.empty(1, dtype=object)
        fields[name][0] = cell
    return DataProto.from_dict(
        {"prompts": prompts, "responses": responses, "attention_mask": attention},
        non_tensors=fields,
    )


def reward_of(data, compute_score):
    async def call():
        manager = LengthRewardManager(None, make_tokenizer(), compute_score)
        manager.loop = asyncio.get_running_loop()
        return await manager.run_single(data)

    return asyncio.run(call())


def test_the_manager_is_known_to_verl():
    assert get_reward_manager_cls(REWARD_MANAGER) is LengthRewardManager


@pytest.mark.parametrize("extra_info", [None, {"index": 3}])
def test_reward_functions_get_the_number_of_tokens(extra_info):
    seen = {}

    def compute_score(data_source, solution_str, ground_truth, extra_info, **_):
        seen.update(extra_info, text=solution_str)
        return float(ground_truth in solution_str)

    result = reward_of(sample(5, extra_info=extra_info), compute_score)
    assert seen["response_tokens"] == 5  # EOS included, which the text does not show
    assert seen["text"].count("w9") == 4 and seen["finish_reason"] == "stop"
    assert result["reward_score"] == 1.0
    assert result["reward_extra_info"] == {"acc": 1.0, "response_tokens": 5.0}
    assert extra_info in (None, {"index": 3}), "the data's own cell stays as it is"


def test_a_published_reward_runs_through_the_manager():
    from reward_fns.l1_exact import l1_exact

    def compute_score(data_source, solution_str, ground_truth, extra_info, **_):
        return l1_exact(1.0, extra_info["response_tokens"], alpha=0.01, target=10)

    assert reward_of(sample(5), compute_score)["reward_score"] == pytest.approx(1 - 0.05)


def test_a_length_reward_without_counts_says_what_to_do():
    from reward_fns.inputs import response_tokens

    with pytest.raises(ValueError, match="LengthRewardManager"):
        response_tokens({"index": 3})


def test_group_rewards_replace_the_score_on_the_last_token():
    rollouts = batch()
    reward = GroupReward.of({"name": "kimi", "weight": 1.0})
    got = reward.apply(rollouts)
    # Prompt 0: 3 tokens right, 1 wrong: lambda = 0.5 - (n - 1) / 2; prompt 1: 5 and 4, both right.
    assert_close(got.sum(1), torch.tensor([0.5, 0.0, 0.5, 1.5]))
    assert torch.equal(got.nonzero()[:, 1], torch.tensor([2, 4, 3]))


def test_groups_of_equal_samples_get_equal_rewards():
    rollouts = batch(lengths=[4, 4, 2, 2], correct=(1.0, 1.0, 0.0, 0.0))
    got = GroupReward.of({"name": "kimi", "weight": 0.5}).apply(rollouts).sum(1)
    assert got[0] == got[1] and got[2] == got[3] and got.isfinite().all()


def test_columns_of_the_data_reach_the_formula():
    rollouts = batch()
    rollouts.columns["target"] = [3, 3, 5, 5]
    reward = GroupReward.of({"name": "l1_exact", "alpha": 0.1})
    assert reward.columns == ("target",)
    assert_close(reward.apply(rollouts).sum(1), torch.tensor([1.0, -0.2, 1.0, 0.9]))


def test_state_of_a_stateful_reward_survives():
    rollouts = batch()
    one = GroupReward.of({"name": "a_dlp", "reference": 0.9})
    one.update(rollouts)
    two = GroupReward.of({"name": "a_dlp", "reference": 0.9})
    two.load_state_dict(one.state_dict())
    assert two.state_dict() == one.state_dict()
    assert_close(two.apply(rollouts), one.apply(rollouts))


def test_unknown_rewards_and_parameters_are_refused():
    assert GroupReward.of(None) is None
    with pytest.raises(ValueError, match="there is no length reward 'kimmi'"):
        GroupReward.of({"name": "kimmi"})
