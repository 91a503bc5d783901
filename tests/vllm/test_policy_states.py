"""A candidate head on the policy's own trunk: inside vLLM it reads the policy's hidden states.

Compared with the sampler that needs no engine, and with a full recompute of every value by the
LenVM on its own copy of the trunk.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from lenvm_rl.demo import policy_path
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.guidance.heads.q_head import PolicyHeadScorer
from lenvm_rl.model import LengthValueModel, describe_policy, save_checkpoint
from lenvm_rl.sampling.run import forced_end
from lenvm_rl.sampling.transformers.sampler import Request
from tests.sampling.guided_rows import guided_rows
from tests.vllm.conftest import ENGINE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = LengthValueModel.from_policy(
        policy_path(),
        gamma=0.98,
        head="candidate",
        frozen_trunk=True,
        policy=describe_policy("demo", tokenizer),
    )
    with torch.no_grad():
        model.score.summary.weight.mul_(4)
        model.score.summary.bias.fill_(0.5)
    return model.eval()


@pytest.fixture(scope="module")
def lenvm_of_policy(model, tokenizer, tmp_path_factory):
    return save_checkpoint(model, tokenizer, tmp_path_factory.mktemp("lenvm") / "lenvm")


def start(vllm, lenvm, processor, **settings):
    return vllm.LLM(
        str(policy_path()),
        logits_processors=[processor],
        additional_config={"lenvm": {"checkpoint": str(lenvm)}},
        **ENGINE,
        **settings,
    )


def complete(vllm, engine, prompts, asked, max_tokens=64, temperature=0.0):
    """Completions of prompts, greedy ones by default, `asked[i]` being their guidance."""
    params = [
        vllm.SamplingParams(temperature=temperature, max_tokens=max_tokens, extra_args=args)
        for args in asked
    ]
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    answers = engine.generate(inputs, params, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def test_greedy_guided_tokens_are_those_of_the_sampler_without_an_engine(
    vllm, lenvm_of_policy, prompts, model
):
    # Prompts are read in pieces, beside rows that decode.
    engine = start(vllm, lenvm_of_policy, "lenvm_rl.vllm:LengthGuidance", max_num_batched_tokens=32)
    settings = [
        GuidanceSettings(mode="tilt", beta=20.0, top_k=12),
        GuidanceSettings(mode="at_most", target=25),
        None,
    ]
    settings = [settings[i % 3] for i in range(len(prompts))]
    asked = [None if chosen is None else chosen.to_args() for chosen in settings]
    expected = guided_rows(
        AutoModelForCausalLM.from_pretrained(policy_path(), dtype=torch.float32).eval(),
        PolicyHeadScorer(model),
        [Request(prompt, max_tokens=64, temperature=0.0) for prompt in prompts],
        settings,
    )
    served = complete(vllm, engine, prompts, asked)
    assert served == [row.response_ids + [1] * forced_end(row) for row in expected]
    unguided = complete(vllm, engine, prompts, [None] * len(prompts))
    assert served[2::3] == unguided[2::3]
    assert served[0::3] != unguided[0::3]


def test_every_value_was_that_of_a_full_recompute(
    vllm, lenvm_of_policy, prompts, tmp_path, monkeypatch
):
    audit_file = tmp_path / "audit.json"
    monkeypatch.setenv("LENVM_AUDIT_FILE", str(audit_file))
    monkeypatch.setenv("LENVM_AUDIT_VALUES", "1")
    # Prompts are read whole: in the middle of a prompt there is no state of its end to compare.
    engine = start(vllm, lenvm_of_policy, "scripts.bench.audit:AuditedGuidance")
    tilt = {"lenvm_mode": "tilt", "lenvm_beta": 20.0, "lenvm_min_p": 0.0}
    complete(vllm, engine, prompts[:5], [tilt] * 5)
    # Ended requests are dropped; see test_guided_llm for the temperature.
    complete(vllm, engine, prompts[:1], [None], max_tokens=2, temperature=0.7)
    figures = json.loads(audit_file.read_text())
    assert figures["values"] > 2_000
    assert figures["max_difference"] < 5e-5, "vLLM's kernels beside transformers'"
    assert figures["guided_requests"] == figures["slots_in_use"] == 0
