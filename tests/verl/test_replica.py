"""Does the transformers rollout engine answer as verl's servers do? (Without Ray.)"""

import asyncio

import pytest
import torch
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import RolloutReplicaRegistry

from lenvm_rl.verl.cpu.replica import TransformersReplica, TransformersServer
from lenvm_rl.verl.cpu.weights import TransformersWeights
from lenvm_rl.verl.plugin import ROLLOUT_NAME
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


def test_an_asynchronous_trainer_waits_for_what_is_sampled_and_holds_the_rest(server):
    weights = dict(server.sampler.model.state_dict())

    async def play():
        early = [asyncio.create_task(ask(server, i)) for i in range(6)]
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="weights arrived while 6 completions"):
            await server.load_weights(weights, 1)
        await server.abort_all_requests(reject_request=False)
        assert not server._futures
        late = asyncio.create_task(ask(server, 9))
        await server.load_weights(weights, 3)
        assert not late.done()
        await server.resume_generation()
        return [await task for task in [*early, late]]

    *early, late = asyncio.run(play())
    assert {answer.extra_fields["global_steps"] for answer in early} == {0}
    assert late.extra_fields["global_steps"] == 3
    assert all(answer.stop_reason == "completed" and answer.token_ids for answer in [*early, late])


def ask(server, i):
    return server.generate(f"request-{i}", [2 + i, 3], SETTINGS)


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


def load(server, weights, step):
    asyncio.run(server.load_weights(weights, step))


def test_it_is_known_to_verl():
    assert RolloutReplicaRegistry.get(ROLLOUT_NAME) is TransformersReplica
    assert get_rollout_class(ROLLOUT_NAME) is TransformersWeights


def test_new_weights_are_sampled_from(server):
    other = make_policy("qwen2")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter))
    before = generate(server, [2, 3], temperature=0.0)[0]
    load(server, other.state_dict(), step=4)
    after = generate(server, [2, 3], temperature=0.0)[0]
    assert (before.extra_fields["global_steps"], after.extra_fields["global_steps"]) == (0, 4)
    with torch.no_grad():
        expected = other(torch.tensor([[2, 3]])).logits[0, -1].argmax().item()
    assert after.token_ids[0] == expected


def test_samples_depend_on_step_and_prompt_and_not_on_what_came_before(server):
    weights = make_policy("qwen2").state_dict()

    def samples(step, *prompts):
        load(server, weights, step)
        return sorted(tuple(answer.token_ids) for answer in generate(server, *prompts))

    whole = samples(3, *[[2, 3]] * 4, [4])
    assert len(set(whole)) > 2, "samples of one prompt differ"
    assert samples(4, *[[2, 3]] * 4, [4]) != whole
    # As after a restart: the same step again, the prompts in another order.
    assert samples(3, [4], *[[2, 3]] * 4) == whole


def test_weights_of_another_model_are_refused(server):
    weights = make_policy("qwen2").state_dict()
    weights["model.extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="unknown .'model.extra.weight'"):
        load(server, weights, 1)
    short = {name: w for name, w in weights.items() if "layers.1" not in name}
    with pytest.raises(ValueError, match="do not fit the served model"):
        load(server, short, 1)


def test_tied_weights_may_be_left_out(server):
    weights = make_policy("qwen2").state_dict()
    whole = dict(weights)
    weights.pop("lm_head.weight", None)
    load(server, weights, 1)
    without = generate(server, [2, 3])
    load(server, whole, 1)
    assert [a.token_ids for a in without] == [a.token_ids for a in generate(server, [2, 3])]


def test_weights_do_not_change_under_a_completion(server):
    server._futures["busy"] = None
    with pytest.raises(ValueError, match="1 completions were being sampled"):
        load(server, make_policy("qwen2").state_dict(), 1)
