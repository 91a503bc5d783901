"""Other formats become rollouts; every bad row is counted and named by file and line."""

import dataclasses
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.rollouts import (
    RolloutReader,
    TextCodec,
    convert_reference,
    convert_text,
    convert_verl,
)
from lenvm_rl.rollouts.convert.lines import longest_spike
from lenvm_rl.rollouts.text import Reasoning, prompt_ids

EOS = 0


class Tokenizer:
    """One id per character; the template puts 1 before each message and 2 at the end."""

    eos_token_id = EOS
    bos_token_id = pad_token_id = None
    all_special_ids = (EOS,)
    chat_template = "yes"

    def __call__(self, text, add_special_tokens=True):
        bos = [self.bos_token_id] if add_special_tokens and self.bos_token_id else []
        return {"input_ids": [*bos, *map(ord, text)]}

    def decode(self, ids):
        return "".join(map(chr, ids))

    def get_vocab(self):
        return {chr(i): i for i in range(256)}

    def apply_chat_template(
        self, messages, add_generation_prompt=False, tokenize=True, return_dict=False
    ):
        text = "".join(f"\x01{m['role'][0]}{m['content']}" for m in messages)
        text += "\x02" * add_generation_prompt
        return list(map(ord, text)) if tokenize else text


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
        reference_row("ab", tokens=5, index=8),
    )
    report = convert_reference(source, tmp_path / "out", codec=CODEC)
    first, truncated, other = read(tmp_path / "out")
    assert first.prompt_ids == [1, *chars("sS"), 1, *chars("uq?"), 2]
    assert first.response_ids == [*chars("abc"), EOS] and first.finish_reason == "stop"
    assert first.prompt_messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "q?"},
    ]
    assert (first.prompt_id, first.sample_id, first.data_source) == ("math/7", 0, "math")
    assert (first.ground_truth, first.policy["name"]) == ("42", "policy")
    assert (first.sampling["temperature"], first.sampling["max_tokens"]) == (0.7, 10)
    assert (truncated.prompt_id, truncated.sample_id, truncated.finish_reason) == (
        "math/7",
        1,
        "length",
    )
    assert truncated.response_ids == chars("0123456789"), "a cut completion gets no EOS"
    assert (other.prompt_id, other.sample_id) == ("math/8", 0)
    assert (report.lines, report.rows, report.bad) == (3, 3, {})
    assert report.notes == {
        "finish_reason inferred from answer_token_length and max_tokens": 3,
        "finish_reason inferred as truncated": 1,
        "a token count unlike the source's": 1,
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
    (reference_row(tokens=700, limit=1000), "other_length"),
    (reference_row(tokens=4, limit=None), "unknown_finish"),
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
        {"prompt": "q?", "completion": [{"role": "assistant", "content": "e"}],
         "finish_reason": "stop"},
        {"prompt": "r", "system": "S", "completion": "f", "prompt_id": 12, "data_source": "x",
         "ground_truth": 3.5, "finish_reason": "stop"},
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
    assert not report.notes


def test_a_source_that_does_not_say_how_a_completion_ended_is_asked(tmp_path):
    source = write_lines(tmp_path / "text.jsonl", {"prompt": "q", "completion": "abc"})
    with pytest.raises(ValueError, match=r"line 1: .*--max-tokens.*--assume-finished"):
        convert_text(source, tmp_path / "out", codec=CODEC)
    report = convert_text(source, tmp_path / "out", codec=CODEC, assume_finished=True)
    assert report.notes == {"finish_reason assumed to be stop, as asked": 1}
    (dump := tmp_path / "dump").mkdir()
    write_lines(dump / "1.jsonl", verl_row(1))
    with pytest.raises(ValueError, match="--max-tokens"):
        convert_verl(dump, tmp_path / "verl", codec=CODEC)


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
        "finish_reason inferred as truncated": 2,
    }


def test_eos_in_the_text_is_not_doubled(tmp_path):
    _, rows = convert(tmp_path, {"prompt": "q", "completion": "a\x00", "finish_reason": "stop"})
    assert rows[0].response_ids == [*chars("a"), EOS]


@pytest.mark.parametrize("tail", ["\x00\n", "\x00\x00", "\x00 \x03\n", "\x03\x03\x00", "\x03"])
def test_what_a_dump_has_after_the_end_token_is_left_out(tmp_path, tail):
    """Padding is 3 here; the end token is kept where it is there, and added where it is not."""
    codec = dataclasses.replace(CODEC, pad_id=3)
    source = write_lines(
        tmp_path / "text.jsonl", {"prompt": "q", "completion": f"ab{tail}", "finish_reason": "stop"}
    )
    report = convert_text(source, tmp_path / "out", codec=codec)
    ids = read(tmp_path / "out")[0].response_ids
    inner = tail.startswith("\x03\x03")
    assert ids == [*chars("ab"), *(chars("\x03\x03") if inner else []), EOS]
    assert bool(report.notes) == (not inner)


def test_an_end_token_inside_a_completion_is_a_bad_row(tmp_path):
    good = {"prompt": "q", "completion": "a", "finish_reason": "stop"}
    report, rows = convert(
        tmp_path,
        {**good, "completion": "a\x00b"},
        {**good, "completion": "a\x00", "finish_reason": "length"},
        good,
        errors="report",
    )
    assert report.bad == {
        "text goes on after an end token": 1,
        "a truncated completion with an end token": 1,
    }
    assert "--end-token" in report.examples[0].reason and len(rows) == 1


def test_an_unknown_end_is_asked_for_or_kept_as_cut_never_as_finished(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", {"prompt": "q", "completion": "a b"})
    with pytest.raises(ValueError, match=r"--max-tokens.*\[unknown_finish\]"):
        convert_text(source, tmp_path / "out", codec=CODEC)
    report = convert_text(source, tmp_path / "out", codec=CODEC, errors="report")
    (row,) = read(tmp_path / "out")
    assert row.finish_reason == "length"
    assert any("--assume-finished" in note for note in report.notes)


def test_an_end_token_in_the_text_says_that_it_finished(tmp_path):
    report, rows = convert(tmp_path, {"prompt": "q", "completion": "a\x00"})
    assert rows[0].finish_reason == "stop" and report.notes.total() == 1


@given(
    st.lists(st.text("abc \n", min_size=1).filter(str.strip), min_size=1, max_size=8),
    st.sampled_from(["", "\x00", "\x00\n"]),
)
def test_dumping_special_tokens_changes_no_length(texts, tail):
    """However a dump writes the end, a finished completion has one end token, the last."""
    for text in texts:
        plain = CODEC.completion(text, finished=True)
        assert CODEC.completion(text + tail, finished=True) == plain
        assert plain.count(EOS) == 1 and plain[-1] == EOS


@pytest.mark.parametrize(
    ("lengths", "spike"),
    [
        ({}, None),
        ({50: 1}, None),
        ({5: 90, 1: 3}, None),
        ({512: 40, 500: 3, 100: 70}, (512, 40)),
        ({512: 2, 300: 100}, None),
        (dict.fromkeys(range(1, 400), 5), None),
        ({n: 1 + 400 // n for n in range(1, 1000)}, None),
    ],
)
def test_many_completions_of_the_longest_length_are_noticed(lengths, spike):
    assert longest_spike(lengths) == spike


def test_a_spike_is_noted_where_the_source_calls_all_of_them_finished(tmp_path):
    row = {"prompt": "q", "completion": "0123456789", "finish_reason": "stop"}
    report, _ = convert(tmp_path, *[row] * 5, {**row, "completion": "a"})
    ((note, count),) = report.notes.items()
    assert "10 tokens" in note and "--max-tokens" in note and count == 5


THOUGHTS = "two and two. " * 40


@pytest.mark.parametrize(
    "beside",
    [
        {"completion": [{"role": "assistant", "content": "4", "reasoning_content": THOUGHTS}]},
        {"completion": {"role": "assistant", "content": "4", "reasoning": THOUGHTS}},
        {"completion": "4", "reasoning_content": THOUGHTS},
    ],
)
def test_reasoning_beside_the_content_is_refused_or_put_back(tmp_path, beside):
    row = {"prompt": "q", "finish_reason": "stop", **beside}
    source = write_lines(tmp_path / "text.jsonl", row)
    with pytest.raises(ValueError, match=r"520 characters of reasoning.*--think-tags"):
        convert_text(source, tmp_path / "out", codec=CODEC)
    codec = TextCodec.from_tokenizer(
        Tokenizer(), tokenizer_sha="characters", reasoning="<t>\n...</t>"
    )
    convert_text(source, tmp_path / "out", codec=codec)
    assert read(tmp_path / "out")[0].response_ids == [*chars(f"<t>\n{THOUGHTS}</t>4"), EOS]


def test_a_completion_cut_inside_its_reasoning_is_a_cut_one(tmp_path):
    message = {"role": "assistant", "content": None, "reasoning_content": "hmm"}
    codec = dataclasses.replace(CODEC, reasoning=Reasoning(before="<t>", after="</t>"))
    source = write_lines(
        tmp_path / "text.jsonl", {"prompt": "q", "completion": message, "finish_reason": "length"}
    )
    convert_text(source, tmp_path / "out", codec=codec)
    (row,) = read(tmp_path / "out")
    assert row.response_ids == chars("<t>hmm") and row.truncated


def test_reasoning_of_a_reference_row_is_put_back(tmp_path):
    row = reference_row(tokens=14)
    row["conversations"][-1]["reasoning_content"] = "hmm"
    source = write_lines(tmp_path / "train.jsonl", row)
    codec = dataclasses.replace(CODEC, reasoning=Reasoning(before="<t>", after="</t>"))
    convert_reference(source, tmp_path / "out", codec=codec, max_tokens=100)
    assert read(tmp_path / "out")[0].finish_reason == "length", "14 of at most 10"


@pytest.mark.parametrize("said", [{"completion_tokens": 90}, {"usage": {"completion_tokens": 90}}])
def test_a_source_that_counted_other_tokens_is_believed(tmp_path, said):
    good = {"prompt": "q", "completion": "x" * 50, "finish_reason": "stop"}
    report, rows = convert(tmp_path, {**good, **said}, good, errors="report")
    assert report.bad == {"other_length": 1} and len(rows) == 1


def test_tool_calls_have_no_known_length(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    good = {"prompt": "q", "completion": "a", "finish_reason": "stop"}
    report, _ = convert(tmp_path, {**good, "completion": call}, good, errors="report")
    assert report.bad == {"tool calls beside the content": 1}


def test_raw_prompts(tmp_path):
    row = {"prompt": "q", "completion": "a", "finish_reason": "stop"}
    _, rows = convert(tmp_path, row, chat=False)
    assert rows[0].prompt_ids == chars("q") and rows[0].prompt_messages is None


@pytest.mark.parametrize("text", ["q", "\x05q"])
def test_a_raw_prompt_begins_with_one_bos_where_the_tokenizer_adds_it(text):
    tokenizer = Tokenizer()
    tokenizer.bos_token_id = 5
    assert prompt_ids(tokenizer, text) == [5, ord("q")]
    assert prompt_ids(tokenizer, [{"role": "user", "content": "q"}])[0] == 1, "the template's own"
    assert TextCodec.from_tokenizer(tokenizer, tokenizer_sha="x").completion("a", finished=False)[
        0
    ] == ord("a")


def test_rename(tmp_path):
    _, rows = convert(
        tmp_path,
        {"question": "q", "answer": "a", "gt": "1", "id": 5, "finish_reason": "stop"},
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
    (
        {"prompt": "q", "completions": ["a", "", 7], "finish_reason": "stop"},
        ["empty_completion", "wrong_type"],
    ),
    ({"prompt": "q", "completion": "a \ud83d"}, ["text is not Unicode"]),
    ({"prompt": "q \udc00", "completion": "a"}, ["text is not Unicode"]),
    (
        {"prompt": "q", "completion": "a", "finish_reason": "stop", "ground_truth": "\ud83d"},
        ["ground_truth does not fit its column"],
    ),
    ('{"prompt": "q", "completion": ' + "[" * 100_000 + "]" * 100_000 + "}", ["bad_json"]),
    ('{"prompt": "q", "completion": ' + "9" * 5000 + "}", ["bad_json"]),
]


@pytest.mark.parametrize(("row", "kinds"), TEXT_GARBAGE)
def test_text_garbage(tmp_path, row, kinds):
    """A bad completion does not take the good ones of its prompt with it."""
    good = {"prompt": "q", "completion": "z", "finish_reason": "stop"}
    report, rows = convert(tmp_path, good, row, good, errors="report")
    assert [example.kind for example in report.examples] == kinds
    assert {example.line for example in report.examples} == {2}
    kept = len(row["completions"]) - len(kinds) if len(kinds) > 1 else 0
    assert len(rows) == report.rows == 2 + kept


def test_any_exception_of_a_row_is_a_bad_row_with_its_place(tmp_path):
    """A template may refuse a prompt in any way it likes, and so may a tokenizer a text."""

    class Refusing(Tokenizer):
        def apply_chat_template(self, messages, **settings):
            if messages[0]["role"] == "system":
                raise RuntimeError("System role not supported")
            return super().apply_chat_template(messages, **settings)

        def __call__(self, text, add_special_tokens=True):
            if "poison" in text:
                raise KeyError("poison")
            return super().__call__(text, add_special_tokens)

    codec = TextCodec.from_tokenizer(Refusing(), tokenizer_sha="characters")
    good = {"prompt": "q", "completion": "z", "finish_reason": "stop"}
    refused = {**good, "system": "be short"}
    source = write_lines(tmp_path / "t.jsonl", refused, good, {**good, "completion": "poison"})
    report = convert_text(source, tmp_path / "out", codec=codec, errors="report")
    assert [(bad.line, bad.kind) for bad in report.examples] == [
        (1, "the chat template refuses the prompt"),
        (3, "the tokenizer refuses the text"),
    ]
    assert "RuntimeError: System role not supported" in report.examples[0].reason
    assert len(read(tmp_path / "out")) == 1
    with pytest.raises(ValueError, match=r"t.jsonl, line 1: .*System role.*--skip-bad"):
        convert_text(source, tmp_path / "raised", codec=codec)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    source = tmp_path / "bom.jsonl"
    row = json.dumps({"prompt": "q", "completion": "a", "finish_reason": "stop"})
    source.write_bytes(f"\ufeff{row}\n{row}\n".encode())
    assert convert_text(source, tmp_path / "out", codec=CODEC).rows == 2


def test_the_file_says_how_its_prompts_were_rendered(tmp_path):
    codec = dataclasses.replace(CODEC, chat_template_args={"enable_thinking": False})
    row = {"prompt": "q", "completion": "a", "finish_reason": "stop"}
    convert_text(write_lines(tmp_path / "t.jsonl", row), tmp_path / "out", codec=codec)
    metadata = RolloutReader(tmp_path / "out").metadata
    assert metadata["chat_template_args"] == {"enable_thinking": False} and metadata["retokenized"]


def test_an_empty_raw_prompt_has_no_first_state(tmp_path):
    report, rows = convert(
        tmp_path,
        {"prompt": "", "completion": "a", "finish_reason": "stop"},
        {"prompt": "q", "completion": "a", "finish_reason": "stop"},
        chat=False,
        errors="report",
    )
    assert report.bad == {"empty_prompt": 1} and len(rows) == 1


def test_codec_without_template_or_eos(tmp_path):
    tokenizer = Tokenizer()
    tokenizer.chat_template = None
    codec = TextCodec.from_tokenizer(tokenizer, tokenizer_sha="x")
    row = {"prompt": "q", "completion": "a", "finish_reason": "stop"}
    source = write_lines(tmp_path / "text.jsonl", {**row, "system": "S"})
    with pytest.raises(ValueError, match="no chat template"):
        convert_text(source, tmp_path / "out", codec=codec)
    assert codec.prompt([{"role": "user", "content": "q"}]) == chars("q"), "a text, as in sampling"
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="no EOS token"):
        TextCodec.from_tokenizer(tokenizer, tokenizer_sha="x")
    named = TextCodec.from_tokenizer(tokenizer, tokenizer_sha="x", end_ids=[9, 4])
    assert (named.eos_id, named.ends) == (9, {4, 9})


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
    assert report.notes["finish_reason inferred as truncated"] == 1


def facts(row):
    return row.reward, row.grader, row.session_id, row.turn


def test_what_a_source_says_of_reward_grader_session_and_turn(tmp_path):
    said = {"reward": 0.5, "grader": "math", "session_id": "s", "turn": 2}
    ended = {"codec": CODEC, "assume_finished": True}
    one = {"prompt": "q", "completion": "a"}
    text = write_lines(
        tmp_path / "t.jsonl",
        {**one, **said},
        {**one, "score": True, "session_id": 7},
        {**one, "reward": "good", "turn": -1},
        {"prompt": "q", "completions": ["a", "b"], "rewards": [1, None], "score": 9},
    )
    report = convert_text(text, tmp_path / "text", **ended)
    rows = [facts(row) for row in read(tmp_path / "text")]
    assert rows[:2] == [(0.5, "math", "s", 2), (1.0, None, "7", None)]
    assert [row[0] for row in rows[2:]] == [None, 1.0, None]
    assert report.notes["a reward that is no finite number, left out"] == 1
    assert report.notes["a turn that is no number from 0, left out"] == 1
    bad = write_lines(tmp_path / "bad.jsonl", one, {**one, "rewards": 1},
                      {"prompt": "q", "completions": ["a"], "rewards": [1, 2]})  # fmt: skip
    report = convert_text(bad, tmp_path / "bad", errors="report", **ended)
    assert report.bad == {"bad_rewards": 1}
    convert_verl(
        write_lines(tmp_path / "1.jsonl", verl_row(1, score=-0.25)), tmp_path / "verl", **ended
    )
    assert facts(read(tmp_path / "verl")[0]) == (-0.25, None, None, None)
    row = reference_row()
    row["meta_info"] |= said
    convert_reference(write_lines(tmp_path / "r.jsonl", row), tmp_path / "reference", **ended)
    assert facts(read(tmp_path / "reference")[0]) == (0.5, "math", "s", 2)


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
    report = convert_verl(
        source, tmp_path / "out", codec=CODEC, assume_finished=True, errors="report"
    )
    assert report.bad == {kind: 1} and report.rows == 1


@pytest.mark.parametrize(
    ("truth", "text"),
    [({"inputs": ["2"]}, '{"inputs": ["2"]}'), (["a"], '["a"]'), (7, "7"), ("x", "x")],
)
def test_ground_truths_become_json_in_every_converter(tmp_path, truth, text):
    plain = write_lines(
        tmp_path / "t.jsonl", {"prompt": "q", "completion": "a", "ground_truth": truth}
    )
    verl = write_lines(
        tmp_path / "1.jsonl", {"input": "q", "output": "a", "gts": truth, "score": 1.0, "step": 1}
    )
    reference = write_lines(
        tmp_path / "r.jsonl", reference_row(source_fields={"final_answer": truth})
    )
    ended = {"assume_finished": True}
    for convert, source, settings in (
        (convert_text, plain, ended),
        (convert_verl, verl, ended),
        (convert_reference, reference, {}),
    ):
        convert(source, tmp_path / convert.__name__, codec=CODEC, **settings)
        assert [row.ground_truth for row in read(tmp_path / convert.__name__)] == [text]
