"""Two tensor-parallel ranks: each has its own LenVM and writes the same logits as one rank would.

Both ranks sample from gathered logits. Did they not write the same, their histories would part and
tokens would differ from those of one rank within a few steps.
"""

import pytest

from lenvm_rl.demo import policy_path
from tests.vllm.conftest import ENGINE

pytestmark = pytest.mark.slow
ASKED = [
    {"lenvm_mode": "tilt", "lenvm_beta": 20.0},
    {"lenvm_mode": "at_most", "lenvm_target": 25},
    {"lenvm_mode": "equal", "lenvm_target": 30},
    None,
]


def complete(vllm, lenvm, prompts, ranks):
    """Greedy tokens of the prompts, modes mixed, by an engine of `ranks` ranks."""
    engine = vllm.LLM(
        str(policy_path()),
        tensor_parallel_size=ranks,
        logits_processors=["lenvm_rl.vllm:LengthGuidance"],
        additional_config={"lenvm": {"checkpoint": str(lenvm)}},
        **ENGINE,
    )
    params = [
        vllm.SamplingParams(temperature=0.0, max_tokens=48, extra_args=ASKED[i % len(ASKED)])
        for i in range(len(prompts))
    ]
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    answers = engine.generate(inputs, params, use_tqdm=False)
    assert engine.llm_engine.vllm_config.parallel_config.tensor_parallel_size == ranks
    engine.llm_engine.engine_core.shutdown()
    return [list(answer.outputs[0].token_ids) for answer in answers]


def test_greedy_guided_tokens_of_two_ranks_are_those_of_one(vllm, lenvm, prompts):
    one = complete(vllm, lenvm, prompts[:8], 1)
    two = complete(vllm, lenvm, prompts[:8], 2)
    assert two == one
    assert all(len(tokens) - (tokens[-1] == 1) <= 25 for tokens in two[1::4])
