"""Right answers alone: the rows a judge takes, their file's word for it, what cannot be judged."""

from dataclasses import replace

import pytest

from lenvm_rl.cli.graders import row_judge
from lenvm_rl.rollouts import RolloutReader, RolloutWriter, keep_correct, split_by_prompt
from lenvm_rl.verl.pretrain.facts import read_facts
from tests.rollouts.rows import EOS, SHA, make_rows


def graded_rows():
    rows = make_rows(prompts=6, samples=3)
    return [replace(row, ground_truth=None if row.prompt_id == "p0" else "7") for row in rows]


def numbers(ids):
    return " ".join(map(str, ids))


def judge(source, text, truth):
    assert source == "math"
    return truth in text.split()[:3]


def test_the_rows_that_the_judge_takes_in_their_order(write, tmp_path):
    rows = [replace(row, response_ids=[7 if i % 2 else 9, *row.response_ids]) for i, row in
            enumerate(graded_rows())]  # fmt: skip
    report = keep_correct(write(rows), tmp_path / "right", decode=numbers, judge=judge)
    wanted = [r for r in rows if r.ground_truth and judge("math", numbers(r.response_ids), "7")]
    kept = list(RolloutReader(tmp_path / "right").iter_rows())
    assert [(r.prompt_id, r.sample_id, list(r.response_ids)) for r in kept] == [
        (r.prompt_id, r.sample_id, r.response_ids) for r in wanted
    ]
    assert (report.rows, report.correct, report.without_truth) == (18, len(wanted), 3)
    assert 0 < report.to_dict()["share_correct"] < 1


def test_the_file_and_what_is_made_of_it_say_so(write, tmp_path):
    path = write(graded_rows())
    always = lambda *_: True  # noqa: E731
    keep_correct(path, tmp_path / "right", decode=numbers, judge=always)
    reader = RolloutReader(tmp_path / "right")
    assert reader.metadata["answers"] == "correct" and reader.metadata["eos_ids"] == [EOS]
    split_by_prompt(tmp_path / "right", tmp_path / "a", tmp_path / "b", heldout_prompts=2)
    limits = {"tokenizer_sha": SHA, "max_prompt_length": 99, "max_response_length": 99}
    assert read_facts(str(tmp_path / "a"), **limits).answers == "correct"
    assert read_facts(str(path), **limits).answers == "all"
    with pytest.raises(ValueError, match="holds correct answers, these rows are all"):
        RolloutWriter(tmp_path / "right", tokenizer_sha=SHA, append=True)


def test_nothing_right_is_an_error_and_leaves_no_file(write, tmp_path):
    never = lambda *_: False  # noqa: E731
    with pytest.raises(ValueError, match="none of 18 completions is right, 3 of them have no"):
        keep_correct(write(graded_rows()), tmp_path / "right", decode=numbers, judge=never)
    assert not (tmp_path / "right").exists()


def test_every_data_source_has_its_own_grader():
    judged = row_judge("auto")
    assert judged("gsm8k/test", "so it is #### 12", "12")
    assert not judged("gsm8k/test", "so it is #### 13", "12")
    assert judged("demo", "the answer is 16", "16")
    with pytest.raises(ValueError, match="grades nothing here .data source 'stories'."):
        judged("stories", "once upon a time", "12")
