"""verl loads the reward functions by configuration, and its GDPO takes what they return."""

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from omegaconf import OmegaConf  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.reward import get_custom_reward_fn  # noqa: E402

from reward_fns import GRADERS, LENGTH_REWARDS  # noqa: E402
from scripts.bench.grpo.strengths import STRENGTHS  # noqa: E402

TEXT = "5 + 3 = 8 the answer is 8"


def load(path, **reward_kwargs):
    """What verl calls when `reward.custom_reward_function` names a file of this package."""
    function = {"path": path, "name": "compute_score", "reward_kwargs": reward_kwargs}
    return get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))


def call(function, tokens):
    return function(
        data_source="demo",
        solution_str=TEXT,
        ground_truth="8",
        extra_info={"response_tokens": tokens, "target": 40},
    )


@pytest.mark.parametrize("name", [n for n, r in LENGTH_REWARDS.items() if r.kind == "sample"])
def test_verl_loads_every_sample_reward(name):
    reward = LENGTH_REWARDS[name]
    strengths = STRENGTHS[name]
    params = strengths.params(strengths.values[1])
    params = {key: value for key, value in params.items() if key not in reward.columns}
    result = call(load(f"pkg://reward_fns.{name}", **params), tokens=50)
    assert result["score"] == pytest.approx(
        reward.bind(**params).group_rewards([1], [50], columns={"target": 40})[0]
    )


def test_verl_loads_a_file_by_its_path():
    import reward_fns.truncation as truncation

    assert call(load(truncation.__file__, limit=40), tokens=50)["score"] == 0.0


@pytest.mark.parametrize("name", sorted(GRADERS))
def test_verl_loads_every_grader(name):
    truth = {"gsm8k": "8", "math": "8", "multiple_choice": "B", "code": "assert f() == 1"}
    truth["mathvista"] = '{"answer": "8", "question_type": "free_form", "answer_type": "integer"}'
    truth["ifeval_rules"] = '{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}'
    function = load(f"pkg://{GRADERS[name]}")
    score = function(
        data_source=name,
        solution_str="" if name != "demo" else TEXT,
        ground_truth=truth.get(name, "8"),
        extra_info={},
    )
    assert score == (1.0 if name == "demo" else 0.0)


def test_gdpo_normalises_answer_and_length_apart():
    # two prompts of two samples; `acc` and `length_reward` as compute_score returns them
    acc = np.array([1.0, 0.0, 1.0, 1.0])
    length = np.array([-0.2, -0.1, -0.3, -0.1])
    shape = (4, 3)
    advantages, _ = core_algos.get_adv_estimator_fn("gdpo")(
        token_level_rewards=torch.zeros(shape),
        response_mask=torch.ones(shape),
        index=np.array(["a", "a", "b", "b"]),
        config={"gdpo_reward_keys": ["acc", "length_reward"]},
        non_tensor_batch={"acc": acc, "length_reward": length},
        batch={"prompts": torch.zeros(4, 1), "attention_mask": torch.ones(4, 4, dtype=torch.long)},
    )
    # within a pair the normalised values are +-1/sqrt(2), whatever their scale: the first pair
    # cancels, the second has length alone
    assert advantages[0, 0].item() == pytest.approx(0.0, abs=1e-4)
    assert advantages[1, 0].item() == pytest.approx(0.0, abs=1e-4)
    assert advantages[3, 0].item() == pytest.approx(-advantages[2, 0].item())
    assert advantages[3, 0].item() > 0.5
