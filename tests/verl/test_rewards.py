"""Do reward functions see true token counts, and do group rewards land on the last tokens?"""

import asyncio
import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

from lenvm_rl.verl.plugin import REWARD_MANAGER
from lenvm_rl.verl.rl.group_rewards import GroupReward
from lenvm_rl.verl.rl.policy_metrics import length_metrics
from lenvm_rl.verl.rl.reward_manager import LengthRewardManager
from lenvm_rl.verl.rl.step_data import QueueData
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


def test_an_uncounted_conversation_is_refused():
    data = sample(5)
    data.non_tensor_batch["__num_turns__"] = np.array([4])
    with pytest.raises(ValueError, match="4.* turns came without the number of tokens"):
        reward_of(data, lambda **_: 1.0)


OWN, TOOL = [1] * 4, [0] * 6


@pytest.mark.parametrize(
    ("masks", "tokens"),
    [
        ([OWN], 4),
        ([OWN + TOOL + [1] * 5], 9),  # a tool's answer of 6 tokens is not the policy's
        ([[1] * 20, [1] * 7], 27),  # one session of two outputs
        ([OWN + TOOL + [1], OWN], 9),
    ],
)
def test_verls_agent_loop_worker_brings_the_count_of_a_session(masks, tokens):
    seen = {}

    def compute_score(data_source, solution_str, ground_truth, extra_info, **_):
        seen.update(extra_info)
        return 1.0

    manager = LengthRewardManager(None, make_tokenizer(), compute_score)

    class Handle:
        """Stands for the Ray actor that scores."""

        class compute_score:
            @staticmethod
            async def remote(data):
                manager.loop = asyncio.get_running_loop()
                return await manager.run_single(data)

    worker = object.__new__(AgentLoopWorker)
    worker.processor, worker.reward_loop_worker_handles = None, [Handle]
    worker._get_mm_processor_kwargs = lambda audios: {}
    outputs = [
        AgentLoopOutput(
            prompt_ids=[5] * (2 + i),
            response_ids=[9] * len(mask),
            response_mask=mask,
            num_turns=4,
            metrics={},
        )
        for i, mask in enumerate(masks)
    ]
    row = {"data_source": "toy", "reward_model": {"ground_truth": "w9"}, "extra_info": {}}
    asyncio.run(worker._compute_score(outputs, kwargs=row))
    assert seen["response_tokens"] == tokens
    assert outputs[-1].extra_fields["reward_extra_info"]["response_tokens"] == tokens
    assert outputs[-1].reward_score == 1.0


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
    assert_close(got, torch.tensor([0.5, 0.0, 0.5, 1.5]))


def test_what_is_earned_lies_on_the_last_token(monkeypatch):
    written = {}
    monkeypatch.setattr(QueueData, "write", lambda self, **columns: written.update(columns))
    batch().reward(torch.tensor([0.5, 0.0, 0.5, 1.5]))
    got = written["rm_scores"]
    assert [row.tolist() for row in got.unbind()] == [
        *([0, 0, 0.5], [0], [0, 0, 0, 0, 0.5], [0, 0, 0, 1.5])
    ]


def test_groups_of_equal_samples_get_equal_rewards():
    rollouts = batch(lengths=[4, 4, 2, 2], correct=(1.0, 1.0, 0.0, 0.0))
    got = GroupReward.of({"name": "kimi", "weight": 0.5}).apply(rollouts)
    assert got[0] == got[1] and got[2] == got[3] and got.isfinite().all()


def sessions():
    """Two sessions of one prompt: 100 tokens in one output, and 4 outputs of 60."""
    rollouts = batch(lengths=[100, 60, 60, 60, 60], finished=[True] * 5, correct=[1.0] * 5)
    keys = ["u_0_0", "u_1_2", "u_1_0", "u_1_3", "u_1_1"]
    data = QueueData("train", keys)
    return dataclasses.replace(rollouts, data=data, groups=torch.zeros(5, dtype=torch.long))


def test_a_session_of_several_outputs_is_one_sample():
    rollouts = sessions()
    assert rollouts.samples.lengths.tolist() == [100, 240]
    assert rollouts.samples.last == [0, 3]
    assert length_metrics(rollouts)["length/mean"] == 170
    got = GroupReward.of({"name": "kimi", "weight": 0.5}).apply(rollouts)
    assert_close(got, torch.tensor([1.25, 0.75, 0.75, 0.75, 0.75]))  # the longer one earns less
    with pytest.raises(ValueError, match="lenvm.use=objective .* 4 outputs for a session"):
        rollouts.check_single_outputs("lenvm.use=objective")
    batch().check_single_outputs("lenvm.use=objective")


def test_a_session_is_cut_where_one_of_its_outputs_is():
    rollouts = sessions()
    rollouts.finished[2] = False
    assert rollouts.samples.finished.tolist() == [True, False]
    assert length_metrics(rollouts)["length/share_truncated"] == 0.5


def test_columns_of_the_data_reach_the_formula():
    rollouts = batch()
    rollouts.columns["target"] = [3, 3, 5, 5]
    reward = GroupReward.of({"name": "l1_exact", "alpha": 0.1})
    assert reward.columns == ("target",)
    assert_close(reward.apply(rollouts), torch.tensor([1.0, -0.2, 1.0, 0.9]))


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
