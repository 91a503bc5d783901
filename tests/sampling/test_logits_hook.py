"""A hook sees every step of every request, changes what is drawn, and hears of every end."""

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request
from tests.tiny import make_policy


class Recorder:
    """Adds a bias to the logits and remembers what it was shown."""

    def __init__(self, bias=None, *, reads_hidden=False):
        self.bias, self.reads_hidden = bias, reads_hidden
        self.steps, self.closed = [], []

    def apply(self, logits, running, hidden):
        assert logits.shape[0] == len(running) and logits.dtype == torch.float32
        for row, state in zip(running, hidden if self.reads_hidden else running, strict=True):
            self.steps.append((row.request_id, list(row.output), state))
        if self.bias is not None:
            logits += self.bias

    def close(self, request_id):
        self.closed.append(request_id)


@pytest.fixture(scope="module")
def model():
    return make_policy("qwen2")


def requests(n=7):
    return [Request([3 + i, 7, 9][i % 3 :], max_tokens=3 + 4 * (i % 3), seed=i) for i in range(n)]


def test_the_hook_sees_all_tokens_of_all_requests(model):
    hook = Recorder()
    hooked = ContinuousSampler(model, eos_token_ids=1, max_batch=3, hook=hook).generate(requests())
    assert hooked == ContinuousSampler(model, eos_token_ids=1, max_batch=3).generate(requests())
    for i, completion in enumerate(hooked):
        seen = [output for request_id, output, _ in hook.steps if request_id == i]
        assert seen == [completion.token_ids[:k] for k in range(len(completion.token_ids))]
    assert sorted(hook.closed) == list(range(7))


def test_what_the_hook_writes_is_what_is_drawn(model):
    bias = torch.full((48,), -torch.inf)
    bias[[20, 21]] = torch.tensor([0.0, 100.0])
    hook = Recorder(bias)
    sampler = ContinuousSampler(model, eos_token_ids=1, hook=hook)
    for completion in sampler.generate(requests()):
        assert set(completion.token_ids) == {21}
        assert completion.logprobs == pytest.approx([0.0] * len(completion.token_ids), abs=1e-6)


def test_hidden_states_are_those_behind_the_logits(model):
    hook = Recorder(reads_hidden=True)
    ContinuousSampler(model, eos_token_ids=1, max_batch=3, hook=hook).generate(requests())
    prompts = [list(request.prompt_ids) for request in requests()]
    with torch.no_grad():
        for request_id, output, state in hook.steps:
            ids = torch.tensor([prompts[request_id] + output])
            expected = model.model(ids).last_hidden_state[0, -1]
            assert_close(state, expected, rtol=1e-4, atol=1e-5)


def test_aborted_requests_are_closed(model):
    hook = Recorder()
    sampler = ContinuousSampler(model, eos_token_ids=1, max_batch=2, hook=hook)
    for name in ("a", "b", "waiting"):
        sampler.submit(Request([5, 6], max_tokens=20, seed=0), name)
    sampler.step()
    assert sampler.abort("a") and sampler.abort("waiting")
    assert hook.closed == ["a"]  # the other never ran
