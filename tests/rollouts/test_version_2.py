"""What a row of version 2 says of itself, and that files of version 1 are read as before."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lenvm_rl.rollouts import (
    Rollout,
    RolloutReader,
    RolloutStream,
    RolloutWriter,
    keep_correct,
    length_report,
    split_by_prompt,
)
from lenvm_rl.rollouts.media import media_paths
from lenvm_rl.rollouts.record import SCHEMA
from lenvm_rl.verl.pretrain.facts import read_facts
from tests.rollouts.rows import EOS, SHA, damage, make_rows

VERSION_1 = Path(__file__).parent / "version_1.parquet"  # written by release 0.1
STEERED = {"lenvm": "runs/lenvm", "lenvm_mode": "at_most", "lenvm_target": 2}
PNG, JPEG = b"\x89PNG one", b"\xff\xd8\xff two"


def old_row(n):
    return Rollout(
        prompt_id="p",
        sample_id=n,
        prompt_ids=[61, 5],
        response_ids=[7] * n + [8 if n == 2 else EOS],
        finish_reason="length" if n == 2 else "stop",
        prompt_messages=[{"role": "user", "content": "Two plus two?"}],
        data_source="math",
        ground_truth="4",
        sampling={"temperature": 1.0, "max_tokens": 3, "seed": n},
        policy={"name": "tiny"},
        response_logprobs=[-0.5] * (n + 1),
        guidance=STEERED,
    )


def test_a_version_1_file_reads_as_before_and_its_guidance_is_every_rows(tmp_path):
    rows = [old_row(n) for n in range(3)]
    reader = RolloutReader(VERSION_1, tokenizer_sha=SHA)
    assert list(reader.iter_rows()) == rows
    assert reader.metadata == {
        "version": 1, "tokenizer_sha": SHA, "vocab_size": 64, "eos_ids": [EOS],
    }  # fmt: skip
    assert [row["reward"] for row in reader.iter_rows(["reward"])] == [None] * 3
    streamed = sorted(RolloutStream(VERSION_1, epochs=1), key=lambda row: row.sample_id)
    assert streamed == rows


def test_version_2_grows_in_a_directory_of_version_1_and_in_what_is_made_of_it(tmp_path):
    path = tmp_path / "rollouts"
    path.mkdir()
    shutil.copy(VERSION_1, path / "part-00000.parquet")
    more = make_rows(3, 2)
    with RolloutWriter(path, tokenizer_sha=SHA, append=True) as writer:
        writer.append(more)
    assert list(RolloutReader(path).iter_rows()) == [old_row(n) for n in range(3)] + more
    split_by_prompt(path, tmp_path / "a", tmp_path / "b", heldout_prompts=1)
    parts = [row for name in "ab" for row in RolloutReader(tmp_path / name).iter_rows()]
    assert sorted(row.sample_id for row in parts if row.guidance == STEERED) == [0, 1, 2]
    assert RolloutReader(tmp_path / "b").metadata["version"] == 2


def test_columns_without_cells_cost_nothing_worth_naming(tmp_path, write):
    shard = RolloutReader(write(make_rows(500, 4, max_length=600))).shards[0]
    footer = pq.read_metadata(shard)
    new = set(SCHEMA.names[11:])
    cost = sum(
        column.total_compressed_size
        for group in range(footer.num_row_groups)
        for column in map(footer.row_group(group).column, range(footer.num_columns))
        if column.path_in_schema.split(".")[0] in new
    )
    assert cost < 0.005 * shard.stat().st_size


def test_context_tokens_are_counted_and_not_trained_on(write):
    rows = make_rows(2, 2, max_length=9)
    inside = replace(
        rows[0], response_ids=[5, 6, 7, 8, EOS], finish_reason="stop", loss_mask=[1, 2, 2]
    )
    assert (inside.context_tokens, rows[1].context_tokens) == (2, 0)
    path = write([replace(rows[1], loss_mask=[rows[1].length]), inside])
    with pytest.raises(
        ValueError, match="sample 0: 2 of 5 response tokens are context.*Leave such"
    ):
        list(RolloutStream(path, epochs=1, columns=[]))
    with pytest.raises(ValueError, match="sample 0: 2 of 5 response tokens are context"):
        read_facts(path, tokenizer_sha=SHA, max_prompt_length=99, max_response_length=99)
    assert [w for w in length_report(path).warnings if w.startswith("1 completions hold context")]


def test_grading_writes_reward_and_grader(write, tmp_path):
    rows = [replace(row, ground_truth="7", reward=-3.0) for row in make_rows(2, 2)]
    path = write(rows)
    always = {"decode": str, "judge": lambda *_: True}
    keep_correct(path, tmp_path / "right", grader_of=lambda source: f"{source}!", **always)
    kept = list(RolloutReader(tmp_path / "right").iter_rows())
    assert kept == [replace(row, reward=1.0, grader="math!") for row in rows]
    keep_correct(path, tmp_path / "as_it_was", **always)
    assert list(RolloutReader(tmp_path / "as_it_was").iter_rows()) == rows


@pytest.fixture
def pictured(tmp_path):
    """A directory of three shards, whose prompts ask about two pictures."""
    rows = make_rows(6, 2)
    path = tmp_path / "pictured"
    with RolloutWriter(path, tokenizer_sha=SHA) as writer:
        names = [writer.add_picture(PNG, "image/png"), writer.add_picture(JPEG, "image/jpeg")]
        for n, row in enumerate(rows):
            row.pictures = [names[n // 2 % 2]] if n < 8 else names
            writer.append([row])
            if n % 4 == 3:
                assert writer.add_picture(PNG, "image/png") == names[0]
                writer.flush()
    return path, rows, names


def test_a_picture_is_stored_once(pictured):
    path, rows, names = pictured
    reader = RolloutReader(path)
    assert list(reader.iter_rows()) == rows and len(reader.shards) == 3
    assert [file.name for file in media_paths(path)] == ["media-00000.parquet"]
    assert pq.read_table(media_paths(path)[0])["hash"].to_pylist() == names
    assert [reader.media[name] for name in names] == [("image/png", PNG), ("image/jpeg", JPEG)]
    assert RolloutReader(reader.shards[1]).media[names[1]].data == JPEG, "of one shard too"


def test_an_appending_writer_knows_the_pictures_and_adds_the_new(pictured):
    path, rows, names = pictured
    with RolloutWriter(path, tokenizer_sha=SHA, append=True) as writer:
        new = writer.add_picture(b"GIF8", "image/gif")
        writer.append([replace(rows[0], sample_id=9, pictures=[names[1], new])])
    assert [file.name for file in media_paths(path)] == [f"media-0000{n}.parquet" for n in (0, 1)]
    assert RolloutReader(path).media[new].data == b"GIF8"
    assert list(RolloutReader(path).media) == [*names, new]


def test_what_is_made_of_a_pictured_file_has_its_pictures(pictured, tmp_path):
    path, rows, names = pictured
    split_by_prompt(path, tmp_path / "a.parquet", tmp_path / "b", heldout_prompts=1, seed=1)
    for part in (tmp_path / "a.parquet", tmp_path / "b"):
        reader = RolloutReader(part)
        asked = {name for row in reader.iter_rows() for name in row.pictures}
        assert asked and asked == set(reader.media)
        assert {reader.media[name].data for name in asked} <= {PNG, JPEG}
    assert (tmp_path / "a.media.parquet").exists()


def test_pictures_that_are_not_there_are_named(pictured, tmp_path):
    path, rows, names = pictured
    with (
        pytest.raises(ValueError, match=f"name picture {names[0]}, which was not added: call add_"),
        RolloutWriter(tmp_path / "other", tokenizer_sha=SHA) as writer,
    ):
        writer.append(rows)
    with (
        pytest.raises(ValueError, match="a picture needs bytes and a type such as image/png"),
        RolloutWriter(tmp_path / "third", tokenizer_sha=SHA) as writer,
    ):
        writer.add_picture(b"", "image/png")
    damage(media_paths(path)[0], "bytes")
    with pytest.raises(ValueError, match="media-00000.parquet: row group 0 cannot be decoded"):
        RolloutReader(path).media[names[0]]
    media_paths(path)[0].write_bytes(b"no Parquet")
    with pytest.raises(ValueError, match="media-00000.parquet is no whole file of pictures"):
        _ = RolloutReader(path).media
    media_paths(path)[0].unlink()
    with pytest.raises(ValueError, match="no file of pictures beside its shards holds it"):
        RolloutReader(path).media[names[0]]


def test_a_picture_of_another_hash_is_refused(pictured):
    path, _, names = pictured
    file = media_paths(path)[0]
    table = pq.read_table(file)
    pq.write_table(table.set_column(0, "hash", table["hash"].take([1, 0])), file)
    with pytest.raises(ValueError, match=f"another picture under the hash {names[0]:.16}"):
        RolloutReader(path).media[names[0]]


def test_pictures_are_whole_before_the_shard_that_names_them(tmp_path):
    row = make_rows(1, 1)[0]
    with RolloutWriter(tmp_path, tokenizer_sha=SHA) as writer:
        row.pictures = [writer.add_picture(PNG, "image/png")]
        writer.append([row])
        assert media_paths(tmp_path) == []
        writer._media.finish()
        assert media_paths(tmp_path) and not list(tmp_path.glob("part-*.parquet"))
    assert list(RolloutReader(tmp_path).iter_rows()) == [row]
