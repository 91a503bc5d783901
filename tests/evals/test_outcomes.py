"""Outcomes of completions by hand, and log-probabilities against one row at a time."""

import pytest
import torch

from lenvm_rl.evals.outcomes import measure, policy_logprobs
from lenvm_rl.sampling.transformers.sampler import Completion
from tests.tiny import make_policy, make_tokenizer


@pytest.fixture(scope="module")
def policy():
    return make_policy("llama").eval()


def test_logprobs_equal_those_of_one_row_at_a_time(policy):
    rows = [([3, 4], [5, 6, 7]), ([9], [10]), ([11, 12, 13, 14], [15, 1])]
    for (prompt, response), ours in zip(rows, policy_logprobs(policy, rows), strict=True):
        with torch.no_grad():
            logprobs = policy(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        start = len(prompt) - 1
        theirs = sum(logprobs[start + k, token].item() for k, token in enumerate(response))
        assert ours == pytest.approx(theirs / len(response), abs=1e-5)


def test_length_leaves_eos_out_and_an_unfinished_answer_is_wrong(policy):
    tokenizer = make_tokenizer()
    done = Completion([5, 6, 1], "stop", [0.0] * 3)
    truncated = Completion([5, 6, 7], "length", [0.0] * 3)
    seen = []

    def accept(text, truth):
        seen.append((text, truth))
        return True

    first, second, third = measure(
        policy, tokenizer, [[3], [4]], ["x", None], [(0, done), (0, truncated), (1, done)], accept
    )
    assert (first.length, first.ended, first.right) == (2, True, True)
    assert (second.length, second.ended, second.right) == (3, False, False)
    assert third.prompt == 1 and not third.right  # nothing to grade against
    assert seen == [(tokenizer.decode([5, 6], skip_special_tokens=True), "x")]
    assert measure(policy, tokenizer, [[3]], ["x"], [(0, done)], None)[0].right is None
