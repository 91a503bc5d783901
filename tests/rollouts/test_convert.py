"""Other formats become rollouts; every bad row is counted and named by file and line."""

import gzip
import json

import pytest

from lenvm_rl.rollouts import (
    RolloutReader,
    TextCodec,
    convert_reference,
    convert_text,
    convert_verl,
)

EOS = 0


class Tokenizer:
    """One id per character; the template puts 1 before each message and 2 at the end."""

    eos_token_id = EOS
    chat_template = "yes"

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}

    def __len__(self):
        return 256

    def apply_chat_template(self, messages, add_generation_prompt, tokenize, return_dict):
        assert add_generation_prompt and tokenize and not return_dict
        return [i for m in messages for i in (1, *map(ord, m["role"][0] + m["content"]))] + [2]


CODEC = TextCodec.from_tokenizer(Tokenizer(), tokenizer_sha="characters")


def chars(text):
    return [ord(c) for c in text]


def write_lines(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def read(path):
    return list(RolloutReader(path, tokenizer_sha="characters").iter_rows())


def reference_row(answer="abc", tokens=4, limit=10, index=7, **changes):
    row = {
        "conversations": [
            {"from": "system", "value": "S"},
            {"from": "human", "value": "q?"},
            {"from": "gpt", "value": answer},
        ],
        "meta_info": {
            "answer_token_length": tokens,
            "lenvm_idx": index,
            "split": "train",
            "dataset_name": "math",
            "model_name": "policy",
            "temperature": 0.7,
            "top_p": 1.0,
            "top_k": None,
            "max_tokens": limit,
        },
        "source_fields": {"final_answer": 42},
    }
    return {**row, **changes}


def test_reference_rows(tmp_path):
    source = write_lines(
        tmp_path / "train.jsonl",
        reference_row(),
        reference_row("0123456789", tokens=10),
        reference_row("ab", tokens=9, index=8),
    )
    report = convert_reference(source, tmp_path / "out", codec=CODEC)
    first, cut, other = read(tmp_path / "out")
    assert first.prompt_ids == [1, *chars("sS"), 1, *chars("uq?"), 2]
    assert first.response_ids == [*chars("abc"), EOS] and first.finish_reason == "stop"
    assert first.prompt_messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "q?"},
    ]
    assert (first.prompt_id, first.sample_id, first.data_source) == ("math/7", 0, "math")
    assert (first.ground_truth, first.policy["name"]) == ("42", "policy")
    assert (first.sampling["temperature"], first.sampling["max_tokens"]) == (0.7, 10)
    assert (cut.prompt_id, cut.sample_id, cut.finish_reason) == ("math/7", 1, "length")
    assert cut.response_ids == chars("0123456789"), "a cut completion gets no EOS"
    assert (other.prompt_id, other.sample_id) == ("math/8", 0)
    assert (report.lines, report.rows, report.bad) == (3, 3, {})
    assert report.notes == {
        "finish_reason inferred from answer_token_length and max_tokens": 3,
        "finish_reason inferred as cut": 1,
        "a token count unlike answer_token_length": 1,
    }


REFERENCE_GARBAGE = [
    ('{"conversations": [{"from": "hum', "bad_json"),
    ("[1, 2]", "not_an_object"),
    ({"meta_info": {}}, "missing_key"),
    (reference_row(conversations="text"), "wrong_type"),
    (reference_row(conversations=[]), "bad_roles"),
    (reference_row(conversations=[{"from": "human", "value": "q"}]), "bad_roles"),
    (reference_row(conversations=[{"from": "gpt", "value": "a"}]), "bad_roles"),
    (reference_row(conversations=[{"from": "robot", "value": "a"}]), "bad_turn"),
    (reference_row(None), "bad_turn"),
    (reference_row(""), "empty_completion"),
    (reference_row(" \n"), "empty_completion"),
    (reference_row(tokens="four"), "wrong_type"),
    (reference_row(index=None), "missing_key"),
    (reference_row(meta_info={"lenvm_idx": 1}), "missing_key"),
    (reference_row(images=["x.png"]), "multimodal"),
]


def test_bad_rows_are_counted_and_named(tmp_path):
    bad = [row for row, _ in REFERENCE_GARBAGE]
    source = write_lines(tmp_path / "bad.jsonl", reference_row(), *bad, "", reference_row())
    report = convert_reference(
        source, tmp_path / "out", codec=CODEC, errors="report", max_examples=100
    )
    assert report.rows == 2 and len(read(tmp_path / "out")) == 2
    assert report.lines == 2 + len(bad) == report.rows + report.bad.total()
    named = [(example.line, example.kind) for example in report.examples]
    assert named == [(n, kind) for n, (_, kind) in enumerate(REFERENCE_GARBAGE, start=2)]
    assert all(example.file == str(source) for example in report.examples)
    assert f"{source}, line 2: not JSON" in report.summary()
    assert "2 left out: empty_completion" in report.summary()
    assert json.loads(json.dumps(report.to_dict()))["bad"]["bad_roles"] == 3


@pytest.mark.parametrize(("row", "kind"), REFERENCE_GARBAGE)
def test_the_first_bad_row_stops_by_default(tmp_path, row, kind):
    source = write_lines(tmp_path / "bad.jsonl", reference_row(), row)
    with pytest.raises(ValueError, match=rf"bad.jsonl, line 2: .*\[{kind}\].*errors='report'"):
        convert_reference(source, tmp_path / "out", codec=CODEC)
    assert not (tmp_path / "out").exists(), "half a conversion must not look whole"


def test_examples_are_limited_but_counts_are_not(tmp_path):
    source = write_lines(tmp_path / "bad.jsonl", reference_row(), *["{"] * 50)
    report = convert_reference(
        source, tmp_path / "out", codec=CODEC, errors="report", max_examples=3
    )
    assert len(report.examples) == 3 and report.bad == {"bad_json": 50}


def test_bytes_that_are_no_text_and_torn_gzip(tmp_path):
    rows = [json.dumps(reference_row()).encode() + b"\n" for _ in range(3000)]
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(b"".join(rows))[:-20])
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(rows[0] + b'{"conversations": "caf\xe9"}\n')
    report = convert_reference([torn, latin], tmp_path / "out", codec=CODEC, errors="report")
    assert report.bad == {"unreadable": 1, "bad_encoding": 1}
    assert report.rows > 1


def test_whole_gzip(tmp_path):
    source = tmp_path / "rows.jsonl.gz"
    source.write_bytes(gzip.compress(json.dumps(reference_row()).encode()))
    assert convert_reference(source, tmp_path / "out.parquet", codec=CODEC).rows == 1
    assert len(read(tmp_path / "out.parquet")) == 1


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path, text):
    (tmp_path / "empty.jsonl").write_text(text)
    with pytest.raises(ValueError, match="nothing to convert in .*empty.jsonl.*: 0 lines"):
        convert_reference(tmp_path / "empty.jsonl", tmp_path / "out", codec=CODEC)
    assert not (tmp_path / "out").exists()


def test_other_wrong_input(tmp_path):
    array = tmp_path / "array.jsonl"
    array.write_text(json.dumps([reference_row()], indent=1))
    with pytest.raises(ValueError, match="JSON array, not JSON lines.*jq"):
        convert_reference(array, tmp_path / "out", codec=CODEC)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        convert_reference(tmp_path / "nowhere", tmp_path / "out", codec=CODEC)
    (tmp_path / "dir").mkdir()
    with pytest.raises(ValueError, match="no .jsonl"):
        convert_reference(tmp_path / "dir", tmp_path / "out", codec=CODEC)
    with pytest.raises(ValueError, match=r"errors must be one of \['raise', 'report'\]"):
        convert_reference(array, tmp_path / "out", codec=CODEC, errors="ignore")


def convert(tmp_path, *rows, **settings):
    source = write_lines(tmp_path / "text.jsonl", *rows)
    report = convert_text(source, tmp_path / "out", codec=CODEC, **settings)
    return report, read(tmp_path / "out")


def test_text_shapes(tmp_path):
    messages = [{"role": "user", "content": "q?"}]
    report, rows = convert(
        tmp_path,
        {"prompt": "q?", "completion": "a", "finish_reason": "stop"},
        {"prompt": messages, "completions": ["b", "cd"], "finish_reasons": ["stop", "length"]},
        {"prompt": "q?", "completion": [{"role": "assistant", "content": "e"}]},
        {"prompt": "r", "system": "S", "completion": "f", "prompt_id": 12, "data_source": "x",
         "ground_truth": 3.5},
        policy={"name": "p", "revision": "r1"},
        sampling={"temperature": 1.0},
        data_source="mine",
    )  # fmt: skip
    asked = [1, *chars("uq?"), 2]
    assert [row.prompt_ids for row in rows[:4]] == [asked] * 4
    assert len({row.prompt_id for row in rows[:4]}) == 1, "named by content"
    assert [row.sample_id for row in rows] == [0, 1, 2, 3, 0]
    assert [row.response_ids for row in rows] == [
        [*chars("a"), EOS],
        [*chars("b"), EOS],
        chars("cd"),
        [*chars("e"), EOS],
        [*chars("f"), EOS],
    ]
    assert [row.finish_reason for row in rows] == ["stop", "stop", "length", "stop", "stop"]
    assert rows[4].prompt_ids == [1, *chars("sS"), 1, *chars("ur"), 2]
    assert (rows[4].prompt_id, rows[4].data_source, rows[4].ground_truth) == ("12", "x", "3.5")
    assert (rows[0].data_source, rows[0].prompt_messages) == ("mine", messages)
    assert rows[0].policy == {"name": "p", "revision": "r1"}
    assert report.notes == {
        "finish_reason assumed to be stop (none given, no max_tokens to infer it)": 2
    }


def test_text_finish_reason_is_inferred_from_the_limit(tmp_path):
    report, rows = convert(
        tmp_path,
        {"prompt": "q", "completions": ["ab", "abc", "abcd"]},
        sampling={"max_tokens": 3},
    )
    assert [row.finish_reason for row in rows] == ["stop", "length", "length"]
    assert rows[0].response_ids[-1] == EOS and rows[1].response_ids == chars("abc")
    assert report.notes == {
        "finish_reason inferred from max_tokens": 3,
        "finish_reason inferred as cut": 2,
    }


def test_eos_in_the_text_is_not_doubled(tmp_path):
    _, rows = convert(tmp_path, {"prompt": "q", "completion": "a\x00", "finish_reason": "stop"})
    assert rows[0].response_ids == [*chars("a"), EOS]


def test_raw_prompts(tmp_path):
    _, rows = convert(tmp_path, {"prompt": "q", "completion": "a"}, chat=False)
    assert rows[0].prompt_ids == chars("q") and rows[0].prompt_messages is None


def test_rename(tmp_path):
    _, rows = convert(
        tmp_path,
        {"question": "q", "answer": "a", "gt": "1", "id": 5},
        rename={"question": "prompt", "answer": "completion", "gt": "ground_truth",
                "id": "prompt_id"},
    )  # fmt: skip
    assert (rows[0].prompt_id, rows[0].ground_truth) == ("5", "1")


TEXT_GARBAGE = [
    ({"completion": "a"}, ["missing_key"]),
    ({"prompt": 5, "completion": "a"}, ["wrong_type"]),
    ({"prompt": "q"}, ["no_completion"]),
    ({"prompt": "q", "completion": "a", "completions": ["a"]}, ["no_completion"]),
    ({"prompt": "q", "completions": []}, ["no_completion"]),
    ({"prompt": "q", "completions": "a"}, ["wrong_type"]),
    ({"prompt": "q", "completion": None}, ["wrong_type"]),
    ({"prompt": [{"role": "user"}], "completion": "a"}, ["bad_message"]),
    ({"prompt": ["q"], "completion": "a"}, ["bad_message"]),
    ({"prompt": "q", "completion": "a", "finish_reason": "eos"}, ["unknown_finish_reason"]),
    ({"prompt": "q", "completions": ["a"], "finish_reasons": ["stop"] * 2}, ["bad_finish_reasons"]),
    ({"prompt": "q", "completions": ["a", "", 7]}, ["empty_completion", "wrong_type"]),
]


@pytest.mark.parametrize(("row", "kinds"), TEXT_GARBAGE)
def test_text_garbage(tmp_path, row, kinds):
    """A bad completion does not take the good ones of its prompt with it."""
    good = {"prompt": "q", "completion": "z"}
    report, rows = convert(tmp_path, good, row, good, errors="report")
    assert [example.kind for example in report.examples] == kinds
    assert {example.line for example in report.examples} == {2}
    kept = len(row["completions"]) - len(kinds) if len(kinds) > 1 else 0
    assert len(rows) == report.rows == 2 + kept


def test_an_empty_raw_prompt_has_no_first_state(tmp_path):
    report, rows = convert(
        tmp_path,
        {"prompt": "", "completion": "a"},
        {"prompt": "q", "completion": "a"},
        chat=False,
        errors="report",
    )
    assert report.bad == {"empty_prompt": 1} and len(rows) == 1


def test_codec_without_template_or_eos(tmp_path):
    tokenizer = Tokenizer()
    tokenizer.chat_template = None
    codec = TextCodec.from_tokenizer(tokenizer, tokenizer_sha="x")
    source = write_lines(tmp_path / "text.jsonl", {"prompt": "q", "completion": "a"})
    with pytest.raises(ValueError, match="no chat template.*chat=False"):
        convert_text(source, tmp_path / "out", codec=codec)
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="no EOS token.*eos_id="):
        TextCodec.from_tokenizer(tokenizer, tokenizer_sha="x")
    assert TextCodec.from_tokenizer(tokenizer, tokenizer_sha="x", eos_id=9).eos_id == 9


def verl_row(step, **changes):
    """As `_write_generations` of verl 0.9 writes it (trainer/ppo/v1/trainer_base.py)."""
    row = {"input": "user q?", "output": "abc", "gts": "42", "score": 1.0, "step": step}
    return {**row, "uid": "u_0_0", **changes}


def test_verl_dumps(tmp_path):
    dump = tmp_path / "dump"
    dump.mkdir()
    write_lines(dump / "10.jsonl", verl_row(10))
    write_lines(dump / "9.jsonl", verl_row(9), verl_row(9, output="0123456789", gts=[1, 2]))
    (dump / "notes.txt").write_text("not a dump")
    report = convert_verl(
        dump, tmp_path / "out", codec=CODEC, sampling={"max_tokens": 10}, policy_name="p"
    )
    rows = read(tmp_path / "out")
    assert [row.policy["revision"] for row in rows] == [
        "global_step_9",
        "global_step_9",
        "global_step_10",
    ], "steps in numeric order"
    assert rows[0].prompt_ids == chars("user q?")
    assert rows[0].response_ids == [*chars("abc"), EOS]
    assert (rows[1].finish_reason, rows[1].response_ids) == ("length", chars("0123456789"))
    assert [row.ground_truth for row in rows] == ["42", "[1, 2]", "42"]
    assert [row.sample_id for row in rows] == [0, 1, 2]
    assert len({row.prompt_id for row in rows}) == 1
    assert report.notes["a prompt without its special tokens"] == 3
    assert report.notes["finish_reason inferred as cut"] == 1


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"input": "q", "output": "a"}, "missing_key"),
        (verl_row(1, output=None), "wrong_type"),
        (verl_row(1, output=""), "empty_completion"),
        (verl_row(1, input=""), "empty_prompt"),
        (verl_row(True), "wrong_type"),
    ],
)
def test_verl_garbage(tmp_path, row, kind):
    source = write_lines(tmp_path / "1.jsonl", verl_row(1), row)
    report = convert_verl(source, tmp_path / "out", codec=CODEC, errors="report")
    assert report.bad == {kind: 1} and report.rows == 1
