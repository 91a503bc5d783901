"""Outcomes of completions by hand, and log-probabilities against one row at a time."""

import math

import pytest
import torch

from lenvm_rl.evals.arms import Outcome, policy_logprobs, read_outcomes
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import Rollout, RolloutWriter
from tests.tiny import make_policy, make_tokenizer


@pytest.fixture(scope="module")
def policy():
    return make_policy("llama").eval()


def row(prompt, sample, ids, reason="stop", **fields):
    return Rollout(
        prompt_id=prompt,
        sample_id=sample,
        prompt_ids=[3, 4],
        response_ids=ids,
        finish_reason=reason,
        sampling={"max_tokens": 8},
        **fields,
    )


def file_of(path, *rows):
    with RolloutWriter(path, tokenizer_sha="x", vocab_size=32, eos_ids=[1]) as writer:
        writer.append(rows)
    return path


def prompts(**truths):
    return [Prompt(prompt_id=name, messages=[], ground_truth=truths[name]) for name in truths]


def test_logprobs_equal_those_of_one_row_at_a_time(policy):
    rows = [([3, 4], [5, 6, 7]), ([9], [10]), ([11, 12, 13, 14], [15, 1])]
    for (prompt, response), ours in zip(rows, policy_logprobs(policy, rows), strict=True):
        with torch.no_grad():
            logprobs = policy(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        start = len(prompt) - 1
        theirs = [logprobs[start + k, token].item() for k, token in enumerate(response)]
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_length_leaves_eos_out_and_an_unfinished_answer_is_wrong(policy, tmp_path):
    tokenizer, seen = make_tokenizer(), []

    def accept(text, truth):
        seen.append((text, truth))
        return True

    path = file_of(
        tmp_path / "file.parquet",
        row("b", 0, [5, 6, 1]),
        row("a", 1, [5, 6, 7], "length"),
        row("a", 0, [5, 6, 1]),
    )
    given = {"policy": policy, "grader": accept}
    first, second, third, fourth = read_outcomes(path, prompts(a="x", b=None), tokenizer, **given)
    assert (first.length, first.ended, first.correct, first.text) == (2, True, True, "w5 w6")
    assert (second.length, second.ended, second.correct) == (3, False, False)
    assert third.prompt == 1 and not third.correct  # nothing to grade against
    assert seen == [(tokenizer.decode([5, 6], skip_special_tokens=True), "x")]
    assert (fourth.came, fourth.length, fourth.correct) == (False, 0, False)
    assert math.isnan(fourth.logprob) and first.logprob == third.logprob < 0
    assert read_outcomes(path, prompts(a="x", b=None), tokenizer)[0].correct is None


def test_an_end_that_guidance_forced_is_an_end(policy, tmp_path):
    """Such a row has no EOS; its log-probability counts it all the same."""
    guidance = GuidanceSettings(mode="at_most", target=2).to_args()
    path = file_of(
        tmp_path / "file.parquet",
        row("a", 0, [5, 6, 1]),
        row("a", 1, [5, 6], "length", guidance={"lenvm": "x", **guidance}),
    )
    own, forced = read_outcomes(path, prompts(a="x"), make_tokenizer(), policy=policy)
    assert forced.ended and forced.length == own.length == 2
    assert forced.logprob == own.logprob


def test_what_a_token_limit_leaves_of_a_completion_is_judged_as_it_stands():
    ids = [5, 6, 7, 8, 9, 5, 6, 7, 8]  # one of six 4-grams occurred before
    whole = Outcome(
        prompt=0,
        token_ids=ids,
        text="w5 ... w8.",
        ended=True,
        correct=True,
        logprobs=[-1.0] * 9 + [-6],
    )
    assert whole.quality == {
        "logprob": -1.5,
        "repetition": pytest.approx(1 / 6),
        "full_sentence": 1,
    }
    assert whole.truncated(9, make_tokenizer()) is whole
    short = whole.truncated(5, make_tokenizer())
    assert (short.text, short.ended, short.correct) == ("w5 w6 w7 w8 w9", False, False)
    assert short.quality == {"logprob": -1, "repetition": 0, "full_sentence": 0}
    nothing = Outcome(prompt=0, came=False).quality
    assert math.isnan(nothing["logprob"]) and math.isnan(nothing["repetition"])
    assert nothing["full_sentence"] == 0
