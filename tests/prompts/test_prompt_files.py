"""Prompts are written whole, and read back as they were, from both formats."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.prompts.prompt import Prompt, image_uri, read_prompts, write_prompts

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
PROMPTS = st.lists(
    st.builds(
        Prompt,
        prompt_id=st.uuids().map(str),
        messages=st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}),
            min_size=1,
            max_size=2,
        ),
        data_source=st.just("math/x"),
        ground_truth=st.none() | st.text(),
        extra=st.dictionaries(st.text(), JSON, max_size=3),
        images=st.lists(st.text(min_size=1), max_size=2),
    ),
    min_size=1,
    max_size=4,
)


@given(PROMPTS)
def test_what_is_written_is_read(tmp_path_factory, prompts):
    folder = tmp_path_factory.mktemp("prompts")
    for ending in ("jsonl", "parquet"):
        write_prompts(prompts, folder / f"p.{ending}")
        assert read_prompts(folder / f"p.{ending}") == prompts


def test_rows_are_what_verl_documents(tmp_path):
    messages = [{"role": "user", "content": "<image>\n1+1?"}]
    prompt = Prompt(
        prompt_id="a",
        messages=messages,
        data_source="math/mine",
        ground_truth="2",
        extra={"kwargs": [{}, {"n": 3}]},
        images=["data:image/png;base64,AAAA"],
    )
    write_prompts([prompt], tmp_path / "p.parquet")
    (row,) = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert row == {
        "prompt": messages,
        "prompt_id": "a",
        "data_source": "math/mine",
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0, "extra": json.dumps({"kwargs": [{}, {"n": 3}]})},
        "images": [{"image": "data:image/png;base64,AAAA"}],
    }
    write_prompts([prompt], tmp_path / "p.jsonl")
    assert json.loads((tmp_path / "p.jsonl").read_text()) == row


def test_verls_own_files_are_read_with_their_extra_info_and_images(tmp_path):
    png = b"\x89PNG\r\n"
    row = {
        "prompt": [{"role": "user", "content": "<image>1+1?"}],
        "extra_info": {"index": 4, "question": "1+1?", "split": None},
        "images": [{"bytes": png, "path": None}],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "p.parquet")
    (prompt,) = read_prompts(tmp_path / "p.parquet")
    assert prompt.extra == {"question": "1+1?"}
    assert prompt.images == [image_uri(png)]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"extra": "{"}, "row 1: 'extra' is not JSON"),
        ({"extra": [1]}, "row 1: 'extra' must be an object"),
        ({"images": [{"path": None}]}, "row 1: an image must be a data URI"),
        ({"images": [7]}, "row 1: an image must be"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, row, sentence):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "q", **row}))
    with pytest.raises(ValueError, match=sentence):
        read_prompts(tmp_path / "p.jsonl")


def test_files_that_cannot_be_written(tmp_path):
    prompt = Prompt(prompt_id="a", messages=[{"role": "user", "content": "q"}])
    with pytest.raises(ValueError, match="written as .jsonl or .parquet"):
        write_prompts([prompt], tmp_path / "p.csv")
    with pytest.raises(ValueError, match="no prompts to write"):
        write_prompts([], tmp_path / "p.jsonl")
    broken = Prompt(prompt_id="b", messages=prompt.messages, extra={"x": object()})
    write_prompts([prompt], tmp_path / "p.jsonl")
    with pytest.raises(TypeError):
        write_prompts([broken], tmp_path / "p.jsonl")
    assert read_prompts(tmp_path / "p.jsonl")[0].prompt_id == "a"  # the old file is whole
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_pictures_of_an_unknown_kind_are_refused():
    assert image_uri(b"\xff\xd8\xff").startswith("data:image/jpeg;base64,")
    with pytest.raises(ValueError, match="is no PNG, JPEG, WebP or GIF"):
        image_uri(b"BM123")
