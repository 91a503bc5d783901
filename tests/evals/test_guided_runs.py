"""From directories to files: control and trade-off of the shipped policy, both kinds of head."""

import json

import pytest
import torch

from lenvm_rl.demo import policy_path, task
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.evals.guided_runs import GuidedPolicy, run_control
from lenvm_rl.evals.length_control.control import ControlSettings
from lenvm_rl.evals.tradeoff.evaluate import TradeoffSettings
from lenvm_rl.evals.tradeoff.run import run_tradeoff
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.model import LengthValueModel, describe_policy, load_tokenizer, save_checkpoint
from lenvm_rl.sampling.transformers.sampler import Request
from tests.tiny import make_tokenizer

PROMPTS = demo_prompts(3, seed=5)


def make_lenvm(path, head, tokenizer=None):
    torch.manual_seed(0)
    tokenizer = tokenizer or load_tokenizer(policy_path())
    policy = describe_policy("demo", tokenizer)
    model = LengthValueModel.from_policy(
        policy_path(), gamma=0.98, head=head, frozen_trunk=head == "candidate", policy=policy
    )
    return save_checkpoint(model, tokenizer, path)


@pytest.mark.parametrize("head", ["state", "candidate"])
def test_control_and_tradeoff_of_the_shipped_policy(tmp_path, head):
    lenvm = make_lenvm(tmp_path / "lenvm", head)
    control = run_control(
        policy_path(),
        lenvm,
        PROMPTS,
        tmp_path / "control",
        grader=task.grade,
        settings=ControlSettings(
            controls=("at_most",), quantiles=(0.5,), samples=1, unguided_samples=4, max_tokens=300
        ),
    )
    assert control.figures["at_most_guided_score"] == 100  # forced, whatever the LenVM thinks
    assert control.figures["unguided_logprob"] > -1
    written = json.loads((tmp_path / "control" / "control.json").read_text())
    assert written["prompts"] == 3 and (tmp_path / "control" / "control.png").stat().st_size > 0
    tradeoff = run_tradeoff(
        policy_path(),
        lenvm,
        PROMPTS,
        tmp_path / "tradeoff",
        grader=task.grade,
        settings=TradeoffSettings(betas=(-5.0,), samples=2, max_tokens=300),
    )
    assert [row["beta"] for row in tradeoff.tables["guided"]] == [-5, 0]
    assert (tmp_path / "tradeoff" / "tradeoff.png").stat().st_size > 0


def test_unguided_requests_get_the_tokens_that_they_get_without_a_lenvm(tmp_path):
    guided = GuidedPolicy(
        policy_path(), make_lenvm(tmp_path / "lenvm", "state"), max_length=400, max_batch=4
    )
    requests = [Request(prompt_ids=[5, 6, 7], max_tokens=40, seed=seed) for seed in range(4)]
    nothing = guided.generate(requests, [None] * 4)
    neutral = GuidanceSettings(mode="tilt", beta=0.0)
    assert guided.generate(requests, [neutral, None, neutral, None]) == nothing


def test_a_lenvm_of_another_tokenizer_is_refused(tmp_path):
    lenvm = make_lenvm(tmp_path / "lenvm", "state", tokenizer=make_tokenizer())
    with pytest.raises(ValueError, match="tokenizer"):
        GuidedPolicy(policy_path(), lenvm, max_length=400)
