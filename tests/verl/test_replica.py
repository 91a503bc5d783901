"""Does the transformers rollout engine answer as verl's servers do? (Without Ray.)"""

import asyncio

import pytest
from verl.workers.rollout.replica import RolloutReplicaRegistry

from lenvm_rl.verl.plugin import ROLLOUT_NAME
from lenvm_rl.verl.replica import TransformersReplica, TransformersServer
from tests.tiny import make_policy

SETTINGS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}


@pytest.fixture
def server(tmp_path):
    make_policy("qwen2").save_pretrained(tmp_path)
    return TransformersServer(
        str(tmp_path), dtype="float32", response_length=12, max_model_len=20, max_batch=4, seed=0
    )


def generate(server, *prompts, **settings):
    async def all_at_once():
        calls = [
            server.generate(f"request-{i}", prompt, {**SETTINGS, **settings}, image_data=None)
            for i, prompt in enumerate(prompts)
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(all_at_once())


def test_concurrent_requests_share_the_batch_and_get_their_own_answers(server):
    answers = generate(server, *[[2 + i, 3] for i in range(10)], logprobs=True)
    assert len({tuple(answer.token_ids) for answer in answers}) > 5
    for answer in answers:
        assert 1 <= len(answer.token_ids) <= 12
        ended = answer.token_ids[-1] == 1
        assert answer.extra_fields["finish_reason"] == ("stop" if ended else "length")
        assert len(answer.log_probs) == len(answer.token_ids)
        assert answer.stop_reason == "completed"


def test_log_probabilities_are_left_out_unless_asked_for(server):
    assert generate(server, [2, 3])[0].log_probs is None


def test_greedy_answers_repeat_and_limits_hold(server):
    first, again = generate(server, [2, 3], [2, 3], temperature=0.0)
    assert first.token_ids == again.token_ids
    assert len(generate(server, [2, 3], max_tokens=3)[0].token_ids) <= 3
    assert len(generate(server, [2] * 16)[0].token_ids) <= 4  # max_model_len 20


def test_a_bad_request_fails_alone(server):
    first, bad, last = generate(server, [2, 3], [2, 300], [4])
    assert first.token_ids and last.token_ids
    assert isinstance(bad, ValueError) and "outside the model's vocabulary" in str(bad)


def test_an_unknown_sampling_setting_is_refused(server):
    (answer,) = generate(server, [2, 3], presence_penalty=1.0)
    assert isinstance(answer, ValueError)
    assert "does not know the sampling settings {'presence_penalty': 1.0}" in str(answer)


def test_an_error_in_the_batch_reaches_every_caller(server, monkeypatch):
    def broken():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(server.sampler, "step", broken)
    answers = generate(server, [2, 3], [4, 5])
    assert all(isinstance(a, RuntimeError) and "out of memory" in str(a) for a in answers)


def test_it_is_standalone_only():
    replica = RolloutReplicaRegistry.get(ROLLOUT_NAME)
    assert replica is TransformersReplica
    with pytest.raises(ValueError, match="serves a frozen policy only.*rollout.name=vllm"):
        asyncio.run(replica.init_hybrid(None, worker_group=None))
