"""Rollout files of the thinking, or of the answer, alone."""

import pytest

from lenvm_rl.demo import policy_path
from lenvm_rl.model import load_tokenizer
from lenvm_rl.rollouts import (
    Rollout,
    RolloutReader,
    RolloutWriter,
    ThinkTags,
    keep_segment,
    split_by_prompt,
)
from lenvm_rl.rollouts.writer import whole_rollout_file
from lenvm_rl.verl.pretrain.facts import read_facts

EOS, OPEN, CLOSE = 1, 5, 6
TAGS = ThinkTags((OPEN,), (CLOSE,))


def row(i, response, reason="stop", **columns):
    given = {"prompt_ids": [3, 10 + i], "response_ids": response, "finish_reason": reason}
    return Rollout(prompt_id=str(i), sample_id=0, **given, **columns)


@pytest.fixture
def path(tmp_path):
    rows = [
        row(0, [OPEN, 9, 9, CLOSE, 8, EOS], response_logprobs=[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]),
        row(1, [8, EOS]),  # no thinking
        row(2, [OPEN, 9, 9], "length"),  # truncated in its thinking
        row(3, [OPEN, CLOSE, 8, 8], "length"),  # truncated in its answer
        row(4, [OPEN, 9, EOS]),  # ended in its thinking
    ]
    path = tmp_path / "rollouts"
    with RolloutWriter(path, tokenizer_sha="t", vocab_size=40, eos_ids=[EOS]) as writer:
        writer.append(rows)
    return path


def test_the_thinking_ends_with_the_first_token_of_its_tag(path, tmp_path):
    report = keep_segment(path, tmp_path / "think", segment="thinking", tags=TAGS)
    assert report.to_dict() == {"rows": 5, "kept": 4, "truncated": 1}
    reader = RolloutReader(tmp_path / "think")
    assert reader.metadata["eos_ids"] == [EOS, CLOSE]
    assert reader.metadata["segment"] == {"name": "thinking", "start": [OPEN], "end": [CLOSE]}
    rows = {row.prompt_id: row for row in reader.iter_rows()}
    assert {name: list(row.response_ids) for name, row in rows.items()} == {
        "0": [OPEN, 9, 9, CLOSE],
        "2": [OPEN, 9, 9],
        "3": [OPEN, CLOSE],
        "4": [OPEN, 9, EOS],
    }
    assert [rows[i].finish_reason for i in "0234"] == ["stop", "length", "stop", "stop"]
    assert list(rows["0"].response_logprobs) == [-1.0, -2.0, -3.0, -4.0]


def test_an_answer_has_the_thinking_in_its_prompt(path, tmp_path):
    report = keep_segment(path, tmp_path / "answer", segment="answer", tags=TAGS)
    assert report.to_dict() == {"rows": 5, "kept": 3, "truncated": 1}
    rows = {row.prompt_id: row for row in RolloutReader(tmp_path / "answer").iter_rows()}
    assert list(rows["0"].prompt_ids) == [3, 10, OPEN, 9, 9, CLOSE]
    assert list(rows["0"].response_ids) == [8, EOS]
    assert list(rows["1"].prompt_ids) == [3, 11]  # a response without thinking is all answer
    assert rows["3"].truncated


def test_what_is_counted_travels_with_the_file(path, tmp_path):
    keep_segment(path, tmp_path / "think", segment="thinking", tags=TAGS)
    limits = dict(tokenizer_sha="t", max_prompt_length=99, max_response_length=99)
    facts = read_facts(str(tmp_path / "think"), **limits)
    assert facts.segment["name"] == "thinking" and facts.longest_response == 4
    sides = tmp_path / "a", tmp_path / "b"
    split_by_prompt(tmp_path / "think", *sides, heldout_prompts=1)
    assert RolloutReader(sides[0]).metadata["segment"] == facts.segment
    with pytest.raises(ValueError, match="these rows are whole responses"):
        RolloutWriter(sides[0], tokenizer_sha="t", vocab_size=40, eos_ids=[EOS, CLOSE], append=True)


def test_no_thinking_anywhere_is_said(path, tmp_path):
    with pytest.raises(ValueError, match="none of 5 responses has a segment 'thinking'"):
        keep_segment(path, tmp_path / "x", segment="thinking", tags=ThinkTags((30,), (31,)))
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="segment must be one of thinking, answer"):
        keep_segment(path, tmp_path / "x", segment="reasoning", tags=TAGS)


def test_responses_with_tools_are_refused(tmp_path):
    with whole_rollout_file(tmp_path / "tools", tokenizer_sha="t", eos_ids=[EOS]) as writer:
        writer.append([row(0, [OPEN, 9, CLOSE, EOS], loss_mask=[1, 1, 2])])
    with pytest.raises(ValueError, match="did not write"):
        keep_segment(tmp_path / "tools", tmp_path / "x", segment="thinking", tags=TAGS)


def test_tags_are_the_tokenizers():
    tokenizer = load_tokenizer(policy_path())
    assert ThinkTags.of("<think>", "</think>", tokenizer) == TAGS
    with pytest.raises(ValueError, match="cannot write the tag '<foo>'"):
        ThinkTags.of("<foo>", "</think>", tokenizer)
