"""Prompt files: verl's and plain ones read alike, bad rows are named."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lenvm_rl.prompts.prompt import read_prompts


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_strings_and_messages_and_verls_parquet_read_alike(tmp_path):
    messages = [{"role": "user", "content": "1+1?"}]
    plain = read_prompts(write(tmp_path / "sums.jsonl", [{"prompt": "1+1?", "ground_truth": 2}]))
    verl = {
        "prompt": messages,
        "data_source": "sums",
        "reward_model": {"style": "rule", "ground_truth": "2"},
    }
    pq.write_table(pa.Table.from_pylist([verl]), tmp_path / "verl.parquet")
    assert plain == read_prompts(tmp_path / "verl.parquet")
    assert plain[0].messages == messages and plain[0].prompt_id == "0"


def test_ids_are_kept_and_limit_counts(tmp_path):
    rows = [{"prompt": f"p{i}", "prompt_id": f"id{i}"} for i in range(5)]
    prompts = read_prompts(write(tmp_path / "p.jsonl", rows), limit=3)
    assert [p.prompt_id for p in prompts] == ["id0", "id1", "id2"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": ""}, "row 2: 'prompt' must be"),
        ({"question": "1+1?"}, r"row 2.*columns: \['question'\]"),
        ({"prompt": [{"role": "user"}]}, "row 2"),
        ({"prompt": "again", "prompt_id": "0"}, "'0' occurs twice"),
        ([1, 2], "line 2: expected an object"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_prompts(write(tmp_path / "p.jsonl", [{"prompt": "fine"}, row]))


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(write(tmp_path / "empty.jsonl", []))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "fine"}\n{"prompt"')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_prompts(tmp_path / "broken.jsonl")
    (tmp_path / "half.parquet").write_bytes(b"PAR1\x00\x00")
    with pytest.raises(ValueError, match="not a readable Parquet"):
        read_prompts(tmp_path / "half.parquet")
    (tmp_path / "p.csv").write_text("prompt\n")
    with pytest.raises(ValueError, match="not '.csv'"):
        read_prompts(tmp_path / "p.csv")


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "what is two"}],
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"index": 0, "extra": {"level": 3}, "split": "train"},
    "images": [{"image": "a.png"}],
}


@pytest.mark.parametrize(
    "columns", [["reward_model"], ["extra_info"], ["prompt"], ["images"], list(VERL)]
)
def test_nested_columns_may_stand_as_json(tmp_path, columns):
    row = {k: json.dumps(v) if k in columns and k != "data_source" else v for k, v in VERL.items()}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    (prompt,) = read_prompts(tmp_path / "p.parquet")
    assert prompt.messages == VERL["prompt"] and prompt.ground_truth == "72"
    assert prompt.extra == {"level": 3, "split": "train"} and prompt.images == ["a.png"]


@pytest.mark.parametrize(
    ("truth", "text"),
    [
        ("72", "72"),
        (["72", "72.0"], '["72", "72.0"]'),
        ({"target": ["Zo\u00eb"]}, '{"target": ["Zo\u00eb"]}'),
        ({"inputs": ["2\n"], "outputs": ["4\n"]}, '{"inputs": ["2\\n"], "outputs": ["4\\n"]}'),
        (7, "7"),
        (True, "true"),
        (None, None),
    ],
)
def test_ground_truths_of_other_types_become_json(tmp_path, truth, text):
    row = {"prompt": "q", "reward_model": {"style": "rule", "ground_truth": truth}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet")[0].ground_truth == text
    plain = write(tmp_path / "p.jsonl", [{"prompt": "q", "ground_truth": truth}])
    assert read_prompts(plain)[0].ground_truth == text


def test_zipped_files_marked_files_and_arrays_read_alike(tmp_path):
    line = json.dumps({"prompt": "na\u00efve?"}, ensure_ascii=False)
    with gzip.open(tmp_path / "p.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(line)
    (tmp_path / "q.jsonl").write_text(line, encoding="utf-8-sig")
    (tmp_path / "r.json").write_text(f"\n[{line}]", encoding="utf-8")
    (tmp_path / "s.json").write_text(f"[{line}]", encoding="utf-8-sig")
    for name in ("p.jsonl.gz", "q.jsonl", "r.json", "s.json"):
        (prompt,) = read_prompts(tmp_path / name)
        assert prompt.messages[0]["content"] == "na\u00efve?"
        assert prompt.data_source == name[0] and prompt.where == f"{tmp_path / name}, row 1"


@pytest.mark.parametrize(
    ("cells", "images"),
    [
        ("data:image/png;base64,AAAA", ["data:image/png;base64,AAAA"]),
        ({"image": "a.png"}, ["a.png"]),
        ('["a.png", {"path": "b.png"}]', ["a.png", "b.png"]),
        ([], []),
        ("", []),
        (None, []),
    ],
)
def test_one_image_is_one_image(tmp_path, cells, images):
    path = write(tmp_path / "p.jsonl", [{"prompt": "q", "images": cells}])
    assert read_prompts(path)[0].images == images


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"reward_model": "rule"}, "row 2: 'reward_model' is not JSON"),
        ({"reward_model": "[1]"}, "row 2: 'reward_model' must be an object or its JSON"),
        ({"extra_info": "x=1"}, "row 2: 'extra_info' is not JSON"),
        ({"extra_info": 7}, "row 2: 'extra_info' must be an object"),
        ({"images": 7}, "row 2: 'images' must be a list"),
        ({"images": "[1"}, "row 2: 'images' is not JSON"),
        ({"images": [{"bytes": "abc"}]}, "row 2: "),
        ({"prompt": "half \ud83d"}, "row 2: the prompt has half a character"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(tmp_path, row, sentence):
    path = write(tmp_path / "p.jsonl", [{"prompt": "fine"}, {"prompt": "q", **row}])
    with pytest.raises(ValueError, match=sentence) as error:
        read_prompts(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"prompt": "caf\xe9"}', "line 2 is not UTF-8"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "line 2 is not JSON"),
        (b"[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, line, sentence):
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=sentence):
        read_prompts(tmp_path / "p.jsonl")
