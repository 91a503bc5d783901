"""Splits leak nothing by content; repetitions are counted by content."""

import dataclasses

import pytest

from lenvm_rl.rollouts import (
    Rollout,
    RolloutReader,
    find_duplicates,
    shared_prompts,
    split_by_prompt,
)
from tests.rollouts.rows import damage, make_rows


def row(prompt_id, prompt_ids, response_ids, sample_id=0):
    return Rollout(
        prompt_id=prompt_id,
        sample_id=sample_id,
        prompt_ids=prompt_ids,
        response_ids=[*response_ids, 0],
        finish_reason="stop",
    )


def contents(path):
    return {tuple(r.prompt_ids) for r in RolloutReader(path).iter_rows()}


def aliased_rows():
    """Every prompt occurs under three names, the rows of a name far from those of another."""
    rows = make_rows(40, 3)
    return [
        dataclasses.replace(r, prompt_id=f"{alias}-{r.prompt_id}") for alias in "abc" for r in rows
    ]


def split(path, tmp_path, **size):
    train, heldout = tmp_path / "train", tmp_path / "heldout"
    return split_by_prompt(path, train, heldout, **size), train, heldout


@pytest.mark.parametrize("size", [{"heldout_fraction": 0.25}, {"heldout_prompts": 10}])
def test_no_prompt_is_on_both_sides(write, tmp_path, size):
    path = write(aliased_rows())
    report, train, heldout = split(path, tmp_path, **size)
    assert not contents(train) & contents(heldout)
    assert contents(train) | contents(heldout) == contents(path)
    assert shared_prompts([train, heldout]) == 0
    assert (report.train_prompts, report.heldout_prompts) == (30, 10)
    assert (report.train_rows, report.heldout_rows) == (270, 90)
    assert len(RolloutReader(train)) == 270 and len(RolloutReader(heldout)) == 90


def test_rows_and_metadata_survive(write, tmp_path):
    rows = make_rows(20, 3)
    _, train, heldout = split(write(rows), tmp_path, heldout_prompts=5)
    out = [*RolloutReader(train).iter_rows(), *RolloutReader(heldout).iter_rows()]
    assert sorted(out, key=rows.index) == rows
    assert RolloutReader(heldout).metadata == RolloutReader(tmp_path / "rollouts").metadata


def test_the_side_depends_on_content_and_seed_alone(write, tmp_path):
    rows = make_rows(40, 3)
    sides = []
    for name, data, seed in (
        ("first", rows, 0),
        ("shuffled", rows[::-1], 0),
        ("renamed", [dataclasses.replace(r, prompt_id="x" + r.prompt_id) for r in rows], 0),
        ("seed", rows, 1),
    ):
        out = tmp_path / f"{name}-out"
        report, _, heldout = split(write(data, name=name), out, heldout_prompts=8, seed=seed)
        assert report.to_dict()["seed"] == seed
        sides.append(contents(heldout))
    assert sides[0] == sides[1] == sides[2] != sides[3]


def test_a_larger_part_contains_the_smaller(write, tmp_path):
    """Growing the held-out part never moves a prompt back into training."""
    path = write(make_rows(40, 2))
    _, _, small = split(path, tmp_path / "small", heldout_prompts=4)
    _, _, large = split(path, tmp_path / "large", heldout_prompts=9)
    assert contents(small) < contents(large)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ({}, "give heldout_fraction or heldout_prompts, one of them"),
        ({"heldout_fraction": 0.5, "heldout_prompts": 1}, "one of them"),
        ({"heldout_fraction": 1.0}, r"must be in \(0, 1\), got 1.0"),
        ({"heldout_fraction": float("nan")}, r"must be in \(0, 1\), got nan"),
        ({"heldout_prompts": 0}, "at least 1, got 0"),
        ({"heldout_prompts": 10}, "10 unique prompts, so holding out 10 leaves none"),
        ({"heldout_fraction": 0.99}, "leaves none to train on"),
    ],
)
def test_bad_sizes(write, tmp_path, size, reason):
    path = write(make_rows(10, 2))
    with pytest.raises(ValueError, match=reason):
        split(path, tmp_path, **size)
    assert not (tmp_path / "train").exists()


def test_nothing_is_overwritten(write, tmp_path):
    path = write(make_rows(10, 2))
    with pytest.raises(ValueError, match="must differ"):
        split_by_prompt(path, path, tmp_path / "b", heldout_prompts=1)
    split(path, tmp_path, heldout_prompts=1)
    with pytest.raises(ValueError, match="train exists and is not an empty directory"):
        split(path, tmp_path, heldout_prompts=1)


def test_a_split_that_fails_leaves_nothing(write, tmp_path):
    path = write(make_rows(40, 4), rows_per_shard=64)
    damage(RolloutReader(path).shards[-1], column="ground_truth")
    with pytest.raises(ValueError, match="cannot be decoded"):
        split(path, tmp_path, heldout_prompts=4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["rollouts"]


def test_shared_prompts_finds_a_leak(write):
    a, b = write(make_rows(10, 2), name="a"), write(make_rows(4, 1, seed=9), name="b")
    assert shared_prompts([a, b]) == 4
    other = write(make_rows(4, 1), name="c", tokenizer_sha="tokenizer-b")
    with pytest.raises(ValueError, match="different tokenizers"):
        shared_prompts([a, other])


def test_duplicates_by_content(write):
    rows = [
        row("a", [1], [5], 0),
        row("a", [1], [6], 1),
        row("a", [1], [5], 2),  # repeats row 0
        row("b", [2], [5], 0),  # same response, another prompt
        row("c", [1], [5], 0),  # repeats row 0, and its prompt has another name
        row("b", [3], [5], 1),  # one name, two prompts
        row("d", [1, 5], [], 0),  # same tokens as rows 0, cut at another place
    ]
    report = find_duplicates(write(rows))
    assert (report.rows, report.unique_prompts) == (7, 4)
    assert report.repeated_completions == 2
    assert report.prompts_with_many_ids == 1
    assert report.ids_with_many_prompts == 1
    assert report.examples == [
        {"row": 2, "repeats_row": 0, "prompt_id": "a", "sample_id": 2},
        {"row": 4, "repeats_row": 0, "prompt_id": "c", "sample_id": 0},
    ]
    assert (
        find_duplicates(write(rows, name="again"), max_examples=1).examples == report.examples[:1]
    )


def test_no_duplicates(write):
    report = find_duplicates(write([row(f"p{n}", [1, n], [2], 0) for n in range(1, 30)]))
    assert report.to_dict() == {
        "rows": 29,
        "unique_prompts": 29,
        "repeated_completions": 0,
        "prompts_with_many_ids": 0,
        "ids_with_many_prompts": 0,
        "examples": [],
    }


def test_progress_is_shown_only_on_demand(write, capfd):
    path = write(make_rows(3, 2))
    find_duplicates(path)
    assert capfd.readouterr().err == ""
    find_duplicates(path, progress=True)
    assert "hashing rows" in capfd.readouterr().err
