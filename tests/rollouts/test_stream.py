"""Every row once per epoch, in an order that is fixed, shuffled, and resumes to the row."""

import json
from collections import Counter

import numpy as np
import pytest

from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutStream, RolloutWriter, files
from lenvm_rl.rollouts.stream import by_group, shuffled, windows
from tests.rollouts.rows import key, make_rows


@pytest.fixture
def small_groups(monkeypatch):
    """Row groups of a few prompts, so that small files have many of them."""
    monkeypatch.setattr(files, "ROW_GROUP_TOKENS", 60)


@pytest.fixture
def path(write, small_groups):
    """12 prompts x 3 completions in many row groups and 3 shards."""
    return write(make_rows(12, 3, max_length=8), rows_per_shard=13)


def keys(rows):
    return [key(row) for row in rows]


def test_an_epoch_has_every_row_once(path):
    rows = list(RolloutStream(path, epochs=1, window_rows=10))
    written = make_rows(12, 3, max_length=8)
    assert sorted(rows, key=key) == sorted(written, key=key)
    assert rows != written


@pytest.mark.parametrize("grouped", [False, True])
def test_epochs_and_seeds_differ_and_repeat(path, grouped):
    def order(**settings):
        return keys(RolloutStream(path, epochs=1, window_rows=10, grouped=grouped, **settings))

    assert order(seed=3) == order(seed=3)
    assert order(seed=3) != order(seed=4)
    assert order(seed=3, epoch=0) != order(seed=3, epoch=1)
    two = keys(RolloutStream(path, seed=3, epochs=2, window_rows=10, grouped=grouped))
    assert two == order(seed=3, epoch=0) + order(seed=3, epoch=1)


@pytest.mark.parametrize("grouped", [False, True])
def test_resume_at_every_row(write, small_groups, grouped):
    path = write(make_rows(7, 3, max_length=8), rows_per_shard=13)

    def stream():
        return RolloutStream(path, seed=1, epochs=2, window_rows=10, grouped=grouped)

    whole = keys(stream())
    assert len(whole) == 42
    for done in range(43):
        first = stream()
        head = keys(first.batch(done)) if done else []
        state = json.loads(json.dumps(first.state_dict()))
        second = stream()
        second.load_state_dict(state)
        assert head + keys(second) == whole, f"resumed after {done} rows"


def test_resume_reads_one_window(path, monkeypatch):
    stream = RolloutStream(path, epochs=1, window_rows=10)
    stream.batch(25)
    resumed = RolloutStream(path, epochs=1, window_rows=10)
    resumed.load_state_dict(stream.state_dict())
    read = []
    original = RolloutReader.read_groups

    def counting(self, groups, columns=None):
        table = original(self, groups, columns)
        read.append(table.num_rows)
        return table

    monkeypatch.setattr(RolloutReader, "read_groups", counting)
    resumed.batch(1)
    assert len(read) == 1 and read[0] < 25


def test_a_state_taken_while_iterating(path):
    stream = RolloutStream(path, epochs=1, window_rows=10)
    rows = iter(stream)
    head = [key(next(rows)) for _ in range(7)]
    resumed = RolloutStream(path, epochs=1, window_rows=10)
    resumed.load_state_dict(stream.state_dict())
    assert head + keys(resumed) == keys(RolloutStream(path, epochs=1, window_rows=10))


def test_batches_cross_epochs_and_end(path):
    stream = RolloutStream(path, epochs=2, window_rows=10)
    sizes, epochs = [], []
    while rows := stream.batch(25):
        sizes.append(len(rows))
        epochs.append(stream.epoch)
    assert sizes == [25, 25, 22]
    assert epochs == [0, 1, 2]
    assert stream.batch(1) == []


def test_endless_by_default(path):
    assert len(RolloutStream(path).batch(200)) == 200


def test_grouped_keeps_completions_together(path):
    rows = keys(RolloutStream(path, epochs=1, window_rows=10, grouped=True))
    for start in range(0, 36, 3):
        assert len({prompt for prompt, _ in rows[start : start + 3]}) == 1
        assert [sample for _, sample in rows[start : start + 3]] == [0, 1, 2]
    prompts = [prompt for prompt, _ in rows[::3]]
    assert prompts != sorted(prompts, key=lambda p: int(p[1:]))


def test_ungrouped_spreads_completions_as_documented(write, small_groups):
    """In a batch of B out of a window of W rows a row meets about (G - 1) B / W of its prompt."""
    groups, samples, window, batch = 64, 8, 512, 64
    path = write(make_rows(groups, samples, max_length=6))
    stream = RolloutStream(path, epochs=6, window_rows=window)
    met = []
    while rows := stream.batch(batch):
        counts = Counter(row.prompt_id for row in rows)
        met += [counts[row.prompt_id] - 1 for row in rows]
    assert np.mean(met) == pytest.approx((samples - 1) * batch / window, rel=0.15)


def test_windows_mix_groups_from_the_whole_file(write, small_groups):
    rows = make_rows(64, 4, max_length=6)
    place = {key(row): n for n, row in enumerate(rows)}
    path = write(rows)
    first = [place[key(row)] for row in RolloutStream(path, window_rows=64).batch(64)]
    assert np.ptp(first) > 128, "a window is a contiguous piece of the file"


def test_memory_is_bounded_by_bytes_too(path):
    groups = RolloutReader(path).row_groups
    stream = RolloutStream(path, epochs=1, window_bytes=int(groups.bytes.max()))
    _, bounds = stream._epoch_plan()
    assert len(bounds) > 4
    assert len(list(stream)) == 36


def test_a_row_group_above_the_window_is_warned_of(path):
    with pytest.warns(UserWarning, match="above window_bytes"):
        RolloutStream(path, window_bytes=1)


def test_columns_bound_what_is_loaded(write):
    rows = [
        Rollout(
            prompt_id="p",
            sample_id=0,
            prompt_ids=[1],
            response_ids=[2, 0],
            finish_reason="stop",
            ground_truth="42",
            data_source="math",
        )
    ]
    path = write(rows)
    assert RolloutStream(path).batch(1) == rows
    few = RolloutStream(path, columns=["ground_truth"]).batch(1)[0]
    assert (few.ground_truth, few.data_source, few.response_ids) == ("42", "unknown", [2, 0])


def test_prompt_filter_skips_and_counts(path):
    def stream():
        return RolloutStream(
            path, epochs=1, window_rows=10, prompt_filter=lambda ids: ids[2] % 3 == 0
        )

    whole = stream()
    kept = keys(whole)
    assert len(kept) == 12 and whole.skipped == 24
    for done in range(13):
        first, second = stream(), stream()
        head = keys(first.batch(done)) if done else []
        second.load_state_dict(first.state_dict())
        assert head + keys(second) == kept


def test_a_filter_that_refuses_everything_is_an_error_not_a_hang(path):
    stream = RolloutStream(path, prompt_filter=lambda ids: False)
    with pytest.raises(ValueError, match="refused every row of .*36 rows"):
        stream.batch(1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 9}, "saved with seed 0, this one has 9"),
        ({"window_rows": 11}, "saved with window_rows 10, this one has 11"),
        ({"grouped": True}, "saved with grouped False, this one has True"),
    ],
)
def test_resume_refuses_another_order(path, change, reason):
    state = RolloutStream(path, window_rows=10).state_dict()
    other = RolloutStream(path, **{"window_rows": 10, **change})
    with pytest.raises(ValueError, match=reason):
        other.load_state_dict(state)


def test_resume_refuses_a_file_that_grew(path):
    state = RolloutStream(path).state_dict()
    with RolloutWriter(path, tokenizer_sha="tokenizer-a", append=True) as writer:
        writer.append(make_rows(2, 3, max_length=8))
    with pytest.raises(ValueError, match="saved with rows 36, this one has 42"):
        RolloutStream(path).load_state_dict(state)


@pytest.mark.parametrize("name", ["window_rows", "window_bytes", "epochs"])
def test_settings_below_one_are_refused(path, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        RolloutStream(path, **{name: 0})
    with pytest.raises(ValueError, match="at least 1 row, got size 0"):
        RolloutStream(path).batch(0)


def test_order_is_fixed_for_ever():
    """A change here breaks the resumption of every run that was started before it."""
    assert shuffled(8, 0, 0).tolist() == [0, 1, 6, 3, 5, 4, 2, 7]
    assert sorted(shuffled(1000, 1, 2).tolist()) == list(range(1000))
    assert shuffled(1000, 1, 2).tolist() != shuffled(1000, 2, 1).tolist()


def test_shuffle_is_uniform():
    """Each index lands on each place about equally often: chi-square far below its 1e-6 tail."""
    counts = np.zeros((10, 10))
    for epoch in range(5000):
        counts[np.arange(10), shuffled(10, 7, epoch)] += 1
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 160  # 81 degrees of freedom: mean 81, standard deviation 13


def test_windows():
    rows, sizes = np.array([4, 4, 4, 9, 1]), np.array([10, 10, 10, 50, 10])
    assert windows(rows, sizes, max_rows=8, max_bytes=1000).tolist() == [0, 2, 4, 5]
    assert windows(rows, sizes, max_rows=100, max_bytes=25).tolist() == [0, 2, 3, 4, 5]
    assert windows(rows, sizes, max_rows=1, max_bytes=1).tolist() == [0, 1, 2, 3, 4, 5]


def test_by_group_keeps_groups_whole_and_in_order():
    keys = np.array([0, 1, 0, 2, 1, 2, 0])
    order = by_group(keys, 5)
    runs = keys[order]
    assert len(np.flatnonzero(np.diff(runs))) == 2
    for group in range(3):
        assert order[runs == group].tolist() == np.flatnonzero(keys == group).tolist()
