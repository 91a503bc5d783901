"""Rows come alike from every layout, and what is wrong with a source is said in a sentence."""

import json

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lenvm_rl.prompts.rows import load_rows, read_rows
from tests.prompts.sets.files import lines

ROWS = [{"question": f"q{i}", "answer": f"a{i}", "big": "x" * 10} for i in range(5)]


def read(source, split="test", **settings):
    found = read_rows(str(source), hub="some/set", config=None, split=split, **settings)
    return [dict(row) for row in found]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def parquet(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "test.jsonl", "x.json", "x.json.gz"])
def test_json_lines_alone_and_in_a_folder(tmp_path, name):
    path = lines(tmp_path / "set" / name, ROWS)
    assert read(path) == ROWS == read(path.parent)


def test_an_array_of_objects_or_of_texts(tmp_path):
    (tmp_path / "objects.json").write_text(json.dumps(ROWS, indent=1))
    assert read(tmp_path / "objects.json") == ROWS
    (tmp_path / "texts.json").write_text('\n["one",\n "two"]')
    assert read(tmp_path / "texts.json") == [{"text": "one"}, {"text": "two"}]


def test_parquet_and_saved_data_sets(tmp_path):
    assert read(parquet(tmp_path / "a" / "some.parquet")) == ROWS
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "one") == ROWS
    datasets.DatasetDict({"test": saved}).save_to_disk(str(tmp_path / "splits"))
    assert read(tmp_path / "splits") == ROWS
    with pytest.raises(ValueError, match="no split 'train': there are test"):
        read(tmp_path / "splits", "train")
    shard = next((tmp_path / "one").glob("*.arrow"))
    assert read(shard) == ROWS


def test_a_copy_of_a_hub_repository(tmp_path):
    parquet(tmp_path / "copy" / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "copy" / "README.md").write_text("# a data set\n")
    assert read(tmp_path / "copy") == ROWS
    with pytest.raises(ValueError, match=r"copy, split 'train', cannot be read: .*train"):
        read(tmp_path / "copy", "train")


def test_the_file_named_by_the_split_is_taken(tmp_path):
    lines(tmp_path / "test.jsonl.gz", ROWS)
    lines(tmp_path / "train.jsonl.gz", ROWS[:2])
    assert read(tmp_path) == ROWS
    assert read(tmp_path, "train") == ROWS[:2]
    with pytest.raises(ValueError, match=r"which of its files is 'dev'\? There are test.jsonl.gz"):
        read(tmp_path, "dev")


def test_large_columns_are_left_unread(tmp_path):
    small = [{key: row[key] for key in ("question", "answer")} for row in ROWS]
    assert read(parquet(tmp_path / "x.parquet"), drop=["big", "absent"]) == small
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved", drop=["big", "absent"]) == small


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a"', "line 2 is not JSON"),
        ("x.jsonl", b'{"a": 1}\n7\n', "line 2: expected an object or a text, got 7"),
        ("x.json", b"[1]", "row 1: expected an object"),
        ("x.jsonl.gz", b'{"a": 1}\n', "damaged or no .jsonl.gz file"),
        ("x.jsonl", b"\xff\xfe\n", "line 1 is not UTF-8"),
        ("x.parquet", b"PAR1", "not a readable Parquet"),
        ("x.arrow", b"ARROW1", "not a readable Arrow"),
        ("x.csv", b"a\n1\n", "read from .jsonl, .json, "),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path / name)


@pytest.mark.parametrize("source", ["/nowhere/x", "./x", "set.jsonl", "x", "a/b/c", "~/nothing-x"])
def test_a_source_that_is_not_there(source):
    with pytest.raises(ValueError, match="does not exist: name a folder or file"):
        read(source)


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty, split 'test', cannot be read"):
        read(tmp_path / "empty")


def test_the_hub_out_of_reach_names_the_remedy(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for source in ("hub", "other/set"):
        with pytest.raises(ValueError, match="out of reach.*hf download --repo-type dataset") as e:
            read(source)
        assert "some/set" in str(e.value) or "other/set" in str(e.value)
    with pytest.raises(ValueError, match="out of reach.*name that folder as the source"):
        load_rows("BAAI/TACO", None, split="train", files="ALL/train-*.parquet")
