"""Prompt files: verl's and plain ones read alike, bad rows are named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lenvm_rl.rollouts.prompts import read_prompts


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
