"""Nested subsets: exact rows, prefixes of each other, clear refusals, and the fingerprint."""

import dataclasses

import pytest

from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.rollouts.parts import content_fingerprint, nested_subset
from tests.rollouts.rows import key, make_rows


def keys(path):
    return [key(row) for row in RolloutReader(path).iter_rows()]


def test_a_subset_has_so_many_prompts_with_their_first_completions(write, tmp_path):
    rows = make_rows(prompts=10, samples=4)
    report = nested_subset(write(rows[::-1]), tmp_path / "small", prompts=6, samples=3)
    found = keys(tmp_path / "small")
    assert len(found) == 18 == report.rows
    assert {sample for _, sample in found} == {0, 1, 2}
    assert len({prompt for prompt, _ in found}) == 6
    assert found == [k for k in map(key, rows[::-1]) if k in set(found)]  # order of the file


def test_smaller_subsets_are_parts_of_larger_ones(write, tmp_path):
    path = write(make_rows(prompts=12, samples=4))
    found = {}
    for prompts, samples in ((3, 4), (3, 1), (9, 4), (9, 2), (12, 4)):
        out = tmp_path / f"{prompts}-{samples}"
        nested_subset(path, out, prompts=prompts, samples=samples)
        found[prompts, samples] = set(keys(out))
    assert found[3, 1] < found[3, 4] < found[9, 4] < found[12, 4] == set(keys(path))
    assert found[3, 1] < found[9, 2] < found[9, 4]


def test_another_seed_takes_other_prompts(write, tmp_path):
    path = write(make_rows(prompts=40, samples=1))
    for seed in (0, 1):
        nested_subset(path, tmp_path / str(seed), prompts=10, samples=1, seed=seed)
    assert keys(tmp_path / "0") != keys(tmp_path / "1")


@pytest.mark.parametrize(
    ("prompts", "samples", "sentence"),
    [
        (11, 1, "10 unique prompts, 11 were asked for"),
        (10, 5, r"10 of 10 prompts have fewer than 5 completions \(the fewest: 4\)"),
        (0, 1, "prompts must be at least 1"),
    ],
)
def test_a_subset_that_the_file_does_not_hold_is_refused(
    write, tmp_path, prompts, samples, sentence
):
    path = write(make_rows(prompts=10, samples=4))
    with pytest.raises(ValueError, match=sentence):
        nested_subset(path, tmp_path / "small", prompts=prompts, samples=samples)
    assert not (tmp_path / "small").exists()


def test_the_fingerprint_is_of_the_content(write):
    rows = make_rows(prompts=6, samples=2)
    one = content_fingerprint(write(rows, "one"))
    assert one == content_fingerprint(write(rows, "two", rows_per_shard=4))
    renamed = [dataclasses.replace(row, prompt_id="x" + row.prompt_id) for row in rows]
    assert one == content_fingerprint(write(renamed, "renamed"))
    longer = dataclasses.replace(rows[0], response_ids=[5, *rows[0].response_ids])
    assert one != content_fingerprint(write([longer, *rows[1:]], "longer"))
    assert one != content_fingerprint(write(rows[::-1], "reversed"))
    assert one != content_fingerprint(write(rows, "tokenizer", tokenizer_sha="tokenizer-b"))
