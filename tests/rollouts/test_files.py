"""What is written is what is read; what is not whole is not read, and says so."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutWriter, files
from lenvm_rl.rollouts.record import SCHEMA
from tests.rollouts.rows import SHA, damage, key, make_rows

text = st.text(max_size=8)
float32 = st.floats(width=32, allow_nan=False, max_value=0)


@st.composite
def rollouts(draw):
    response = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12))
    message = st.fixed_dictionaries({"role": text, "content": text})
    logprobs = st.lists(float32, min_size=len(response), max_size=len(response))
    runs = st.sampled_from([[n, len(response) - n] for n in range(1, len(response))] or [[1]])
    segment = st.integers(0, len(response)).map(
        lambda end: {"name": "thought", "start": 0, "end": end}
    )
    return Rollout(
        prompt_id=draw(text),
        sample_id=draw(st.integers(-(2**63), 2**63 - 1)),
        prompt_ids=draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12)),
        response_ids=response,
        finish_reason=draw(st.sampled_from(["stop", "length"])),
        prompt_messages=draw(st.none() | st.lists(message, max_size=3)),
        data_source=draw(text),
        ground_truth=draw(st.none() | text),
        sampling=draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "temperature": st.floats(0, 2),
                    "top_k": st.integers(-1, 1000),
                    "max_tokens": st.integers(1, 2**31 - 1),
                    "seed": st.integers(0, 2**63 - 1),
                },
            )
        ),
        policy=draw(st.fixed_dictionaries({}, optional={"name": text, "revision": text})),
        response_logprobs=draw(st.none() | logprobs),
        guidance=draw(st.none() | st.dictionaries(text, st.none() | text | st.integers())),
        loss_mask=draw(st.none() | runs),
        segments=draw(st.none() | st.lists(segment, max_size=2)),
        session_id=draw(st.none() | text),
        turn=draw(st.none() | st.integers(0, 2**31 - 1)),
        reward=draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        grader=draw(st.none() | text),
    )


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(rollouts(), min_size=1, max_size=12), per_shard=st.integers(1, 5))
def test_rows_come_back_as_they_were(tmp_path_factory, rows, per_shard):
    path = tmp_path_factory.mktemp("rollouts")
    with RolloutWriter(path, tokenizer_sha=SHA, rows_per_shard=per_shard) as writer:
        writer.append(rows)
    reader = RolloutReader(path)
    assert len(reader) == len(rows) == writer.rows_written
    assert list(reader.iter_rows()) == rows
    assert reader.lengths().tolist() == [row.length for row in rows]


def test_metadata_and_shards(write):
    path = write(make_rows(10, 4), rows_per_shard=16)
    reader = RolloutReader(path, tokenizer_sha=SHA)
    assert reader.metadata == {
        "version": 2,
        "tokenizer_sha": SHA,
        "vocab_size": 64,
        "eos_ids": [0],
    }
    assert [shard.name for shard in reader.shards] == [f"part-{n:05d}.parquet" for n in range(3)]
    assert [pq.read_metadata(shard).num_rows for shard in reader.shards] == [16, 16, 8]


def test_a_single_file(tmp_path):
    rows = make_rows(30, 4)
    with RolloutWriter(tmp_path / "x.parquet", tokenizer_sha=SHA, rows_per_shard=10) as writer:
        writer.append(rows[:50])
        writer.flush()
        assert not (tmp_path / "x.parquet").exists(), "it must appear whole"
        writer.append(rows[50:])
    assert list(RolloutReader(tmp_path / "x.parquet").iter_rows()) == rows
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.parquet"]


def test_projection_reads_the_columns_asked_for(write):
    rows = make_rows(3, 2)
    reader = RolloutReader(write(rows), batch_rows=4)
    got = list(reader.iter_rows(["finish_reason", "response_ids"]))
    assert got == [
        {"finish_reason": row.finish_reason, "response_ids": row.response_ids} for row in rows
    ]
    assert [batch.num_rows for batch in reader.iter_batches(["sample_id"])] == [4, 2]
    with pytest.raises(ValueError, match=r"unknown columns \['length'\].*response_ids"):
        next(reader.iter_batches(["length"]))


@pytest.mark.parametrize("at_once", [1, 7, 120])
def test_row_groups_are_bounded_in_tokens_and_end_between_prompts(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(files, "ROW_GROUP_TOKENS", 100)
    rows = make_rows(40, 3, max_length=12)
    with RolloutWriter(tmp_path, tokenizer_sha=SHA, rows_per_shard=20) as writer:
        for start in range(0, len(rows), at_once):
            writer.append(rows[start : start + at_once])
    reader = RolloutReader(tmp_path)
    groups = [reader.read_groups([g]) for g in range(len(reader.row_groups.rows))]
    assert len(groups) > 5
    seen = []
    for group in groups:
        # At most the group's limit and one prompt's rows above it.
        columns = [group[name].to_pylist() for name in ("prompt_ids", "response_ids")]
        tokens = sum(len(ids) for column in columns for ids in column)
        assert tokens <= 100 + 3 * 15
        ids = set(group["prompt_id"].to_pylist())
        assert not ids & set(seen), "a prompt is in two groups"
        seen += ids
    assert list(reader.iter_rows()) == rows


def test_a_prompt_larger_than_a_row_group_is_split(write, monkeypatch):
    monkeypatch.setattr(files, "ROW_GROUP_TOKENS", 100)
    rows = make_rows(1, 60, max_length=12)
    reader = RolloutReader(write(rows))
    assert len(reader.row_groups.rows) > 3
    assert list(reader.iter_rows()) == rows


def test_append_continues_the_numbering(write, tmp_path):
    first, second = make_rows(5, 4), make_rows(3, 4, seed=1)
    path = write(first, rows_per_shard=8)
    with RolloutWriter(path, tokenizer_sha=SHA, append=True) as writer:
        assert (writer.vocab_size, writer.eos_ids) == (64, [0]), "taken from the file"
        writer.append(second)
    reader = RolloutReader(path)
    assert [s.name for s in reader.shards] == [f"part-{n:05d}.parquet" for n in range(4)]
    assert list(reader.iter_rows()) == first + second


def test_append_of_nothing_changes_nothing(write):
    rows = make_rows(2, 2)
    path = write(rows)
    with RolloutWriter(path, tokenizer_sha=SHA, append=True):
        pass
    assert list(RolloutReader(path).iter_rows()) == rows


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer_sha": "tokenizer-b"}, "written with tokenizer tokenizer-a.*tokenizer-b"),
        ({"vocab_size": 100}, "written with vocab_size 64, not 100"),
        ({"eos_ids": [1]}, r"written with eos_ids \[0\], not \[1\]"),
    ],
)
def test_append_refuses_another_tokenizer(write, change, reason):
    path = write(make_rows(2, 2))
    with pytest.raises(ValueError, match=reason):
        RolloutWriter(path, **{"tokenizer_sha": SHA, "append": True, **change})
    # The refusal has released the directory.
    RolloutWriter(path, tokenizer_sha=SHA, append=True).close()


def test_existing_rows_are_not_mixed_in_unasked(write, tmp_path):
    path = write(make_rows(2, 2))
    with pytest.raises(ValueError, match="already has 1 shards. Pass append=True"):
        RolloutWriter(path, tokenizer_sha=SHA)
    single = write(make_rows(2, 2), name="one.parquet")
    with pytest.raises(ValueError, match="one.parquet exists"):
        RolloutWriter(single, tokenizer_sha=SHA)
    with pytest.raises(ValueError, match="single Parquet file, which cannot grow"):
        RolloutWriter(tmp_path / "two.parquet", tokenizer_sha=SHA, append=True)


def test_two_writers_in_one_directory_are_refused(tmp_path):
    with (
        RolloutWriter(tmp_path, tokenizer_sha=SHA),
        pytest.raises(ValueError, match="another writer is at work"),
    ):
        RolloutWriter(tmp_path, tokenizer_sha=SHA, append=True)


def test_a_writer_needs_a_tokenizer_sha(tmp_path):
    with pytest.raises(ValueError, match="tokenizer_sha must be a non-empty string, got ''"):
        RolloutWriter(tmp_path, tokenizer_sha="")


def test_a_bad_row_is_refused_and_earlier_rows_are_kept(tmp_path):
    good, bad = make_rows(2, 2), make_rows(1, 1)[0]
    bad.response_ids = []
    with (
        pytest.raises(ValueError, match="row 4 .*response_ids is empty"),
        RolloutWriter(tmp_path, tokenizer_sha=SHA) as writer,
    ):
        writer.append(good)
        writer.append([bad])
    assert list(RolloutReader(tmp_path).iter_rows()) == good
    with pytest.raises(ValueError, match="is closed"):
        writer.append(good)


def test_a_single_file_is_not_left_behind_by_an_error(tmp_path):
    with (
        pytest.raises(RuntimeError, match="sampler"),
        RolloutWriter(tmp_path / "x.parquet", tokenizer_sha=SHA) as writer,
    ):
        writer.append(make_rows(600, 4))
        raise RuntimeError("the sampler failed")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys
from lenvm_rl.rollouts import RolloutWriter
from tests.rollouts.rows import make_rows
rows = make_rows(400, 4)
with RolloutWriter(sys.argv[1], tokenizer_sha="tokenizer-a", rows_per_shard=64) as writer:
    n = 0
    while True:
        writer.append([rows[n % 1600]])
        n += 1
"""


@pytest.mark.slow
def test_kill_minus_nine_leaves_whole_shards(tmp_path):
    path = tmp_path / "rollouts"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)])
    try:
        deadline = time.time() + 60
        while not (path / "part-00003.parquet").exists():
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.002)
        # Wait for the next shard's temporary file, so that the kill falls into its making.
        while not list(path.glob("*.tmp")):
            assert process.poll() is None and time.time() < deadline
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    leftovers = list(path.glob("*.tmp"))
    with pytest.warns(UserWarning, match="unfinished") if leftovers else contextlib.nullcontext():
        reader = RolloutReader(path)
    rows = list(reader.iter_rows())
    expected = make_rows(400, 4)
    assert len(rows) >= 4 * 64 and len(rows) % 64 == 0
    assert rows == [expected[n % 1600] for n in range(len(rows))]
    with pytest.warns(UserWarning, match="removed") if leftovers else contextlib.nullcontext():
        writer = RolloutWriter(path, tokenizer_sha=SHA, append=True)
    with writer:
        writer.append(expected[:8])
    assert list(RolloutReader(path).iter_rows()) == rows + expected[:8]


def test_leftovers_are_ignored_and_reported(write):
    rows = make_rows(4, 2)
    path = write(rows)
    (path / "part-00001.parquet.123.tmp").write_bytes(b"PAR1 half of a shard")
    with pytest.warns(UserWarning, match="ignored unfinished part-00001.parquet.123.tmp"):
        reader = RolloutReader(path)
    assert list(reader.iter_rows()) == rows
    assert [leftover.name for leftover in reader.leftovers] == ["part-00001.parquet.123.tmp"]
    with pytest.warns(UserWarning, match="removed .*123.tmp"):
        RolloutWriter(path, tokenizer_sha=SHA, append=True).close()
    assert RolloutReader(path).leftovers == ()


def test_only_leftovers(tmp_path):
    (tmp_path / "part-00000.parquet.9.tmp").write_bytes(b"")
    with pytest.raises(ValueError, match="no whole shard, only .*9.tmp.*Sample again"):
        RolloutReader(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 200])
def test_a_half_written_shard_is_named(write, keep):
    path = write(make_rows(40, 4), rows_per_shard=64)
    shard = path / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"part-00001.parquet is not a whole Parquet file \(\d+ b"):
        RolloutReader(path)
    with pytest.raises(ValueError, match="part-00001.parquet is not a whole"):
        RolloutWriter(path, tokenizer_sha=SHA, append=True)


def test_damage_inside_a_shard_is_found_when_read(write):
    path = write(make_rows(40, 4), rows_per_shard=64)
    damage(path / "part-00001.parquet")
    reader = RolloutReader(path)
    with pytest.raises(ValueError, match="part-00001.parquet: row group 0 cannot be decoded"):
        list(reader.iter_rows())
    with pytest.raises(ValueError, match="part-00001.parquet: row group 0 cannot be decoded"):
        reader.read_groups([0, 1])


def test_no_flipped_byte_goes_unnoticed(write):
    """Every 23rd byte of a shard in turn: the rows are right, or an error names the file."""
    rows = make_rows(8, 4)
    shard = RolloutReader(write(rows)).shards[0]
    whole = shard.read_bytes()
    refused = 0
    for position in range(0, len(whole), 23):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        shard.write_bytes(damaged)
        try:
            assert list(RolloutReader(shard).iter_rows()) == rows, position
        except ValueError as error:
            assert str(shard) in str(error), position
            refused += 1
    assert refused > 0.8 * len(whole) / 23


def test_foreign_files(tmp_path, write):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="foreign.parquet is Parquet but not a rollout file"):
        RolloutReader(tmp_path / "foreign.parquet")
    (tmp_path / "notes.txt").write_text("not Parquet at all")
    with pytest.raises(ValueError, match="notes.txt is not a whole Parquet file"):
        RolloutReader(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"no part-\*.parquet.*It has \['foreign.parquet'\]"):
        RolloutReader(tmp_path)
    with pytest.raises(FileNotFoundError, match="no rollout file at .*nowhere"):
        RolloutReader(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no part-\*.parquet"):
        RolloutReader(tmp_path / "empty")


def test_a_file_without_rows(tmp_path):
    with RolloutWriter(tmp_path / "none.parquet", tokenizer_sha=SHA):
        pass
    with pytest.raises(ValueError, match="none.parquet holds no rows"):
        RolloutReader(tmp_path / "none.parquet")


def rewritten(write, tmp_path, change):
    """A valid file whose table went through `change`, at another path."""
    table = pq.read_table(write(make_rows(3, 2), name="whole.parquet"))
    path = tmp_path / "changed.parquet"
    changed = change(table)
    pq.write_table(changed, path)
    return path


def test_a_missing_column_is_named(write, tmp_path):
    path = rewritten(write, tmp_path, lambda t: t.drop_columns(["finish_reason", "policy"]))
    with pytest.raises(ValueError, match=r"changed.parquet lacks .*\['finish_reason', 'policy'\]"):
        RolloutReader(path)


def test_missing_optional_columns_read_as_null(write, tmp_path):
    drop = ["response_logprobs", "prompt_messages"]
    path = rewritten(write, tmp_path, lambda t: t.drop_columns(drop))
    assert list(RolloutReader(path).iter_rows()) == make_rows(3, 2)


def test_a_column_of_another_type_is_refused(write, tmp_path):
    def change(table):
        wide = table["response_ids"].cast(pa.list_(pa.int64()))
        return table.set_column(3, "response_ids", wide)

    path = rewritten(write, tmp_path, change)
    with pytest.raises(ValueError, match="column response_ids is list<.*int64.*has list<.*int32"):
        RolloutReader(path)


def test_rows_of_other_writers_are_checked_when_read(write, tmp_path):
    """The file says its EOS is 0 and its vocabulary 64; a foreign hand put in other rows."""

    def change(table):
        ids = table["response_ids"].to_pylist()
        ids[4] = [5, 64]
        column = pa.array(ids, type=pa.list_(pa.int32()))
        return table.set_column(3, "response_ids", column)

    reader = RolloutReader(rewritten(write, tmp_path, change))
    with pytest.raises(ValueError, match="changed.parquet, row 4 .*token id 64"):
        list(reader.iter_rows())
    with pytest.raises(ValueError, match="row 4: .*token id 64"):
        reader.lengths()
    assert sum(batch.num_rows for batch in reader.iter_batches(check=False)) == 6


def test_another_format_version_is_refused(write, tmp_path):
    def change(table):
        return table.replace_schema_metadata({b"lenvm": json.dumps({"version": 3}).encode()})

    with pytest.raises(ValueError, match="rollout format version 3, this release reads 1 and 2"):
        RolloutReader(rewritten(write, tmp_path, change))


def test_another_tokenizer_is_refused(write):
    path = write(make_rows(2, 2))
    with pytest.raises(ValueError, match="written with tokenizer tokenizer-a, but tokenizer other"):
        RolloutReader(path, tokenizer_sha="other")


def test_shards_of_two_data_sets_are_refused(write):
    path = write(make_rows(2, 2))
    other = write(make_rows(2, 2), name="other", tokenizer_sha="tokenizer-b")
    os.replace(other / "part-00000.parquet", path / "part-00001.parquet")
    with pytest.raises(ValueError, match="part-00001.parquet has tokenizer_sha tokenizer-b"):
        RolloutReader(path)


def test_shards_are_read_in_numeric_order(write):
    rows = make_rows(4, 2)
    path = write(rows[:4])
    later = write(rows[4:], name="later")
    os.replace(later / "part-00000.parquet", path / "part-100000.parquet")
    assert [key(row) for row in RolloutReader(path).iter_rows()] == [key(row) for row in rows]


def test_datasets_reads_our_files(write, tmp_path):
    rows = make_rows(10, 4)
    shards = RolloutReader(write(rows, rows_per_shard=16)).shards
    loaded = datasets.load_dataset(
        "parquet",
        data_files=[str(shard) for shard in shards],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded.column_names == SCHEMA.names
    assert [row["response_ids"] for row in loaded] == [row.response_ids for row in rows]
