"""Grids of runs: real processes, going on after a kill, what a fingerprint covers, refusals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lenvm_rl.model import tokenizer_sha
from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutWriter, shared_prompts
from recipes.paper_grids.cell import Cell, build, fingerprint, fresh_size
from recipes.paper_grids.data import heldout_rows, prepare_data
from recipes.paper_grids.grid import run_grid
from scripts.bench.pool import RunsFailed
from tests.tiny import make_tokenizer

CELL = Cell(trunk="1x16", prompts=4, samples=2, gamma=0.8, length_scale=9.0, steps=4, evaluations=2)


def write(path, *, first=0, count=10, sha=None):
    rows = [
        Rollout(
            prompt_id=f"p{first + prompt}",
            sample_id=sample,
            prompt_ids=[20, 2 + first + prompt],
            response_ids=[30] * ((prompt + sample) % 7 + 1) + [1],
            finish_reason="stop",
        )
        for prompt in range(count)
        for sample in range(3)
    ]
    with RolloutWriter(path, tokenizer_sha=sha or tokenizer_sha(make_tokenizer())) as writer:
        writer.append(rows)
    return path


@pytest.fixture
def data(tmp_path, tiny_policy):
    rollouts = write(tmp_path / "rollouts")
    return prepare_data(rollouts, tmp_path / "out", policy=tiny_policy, heldout_prompts=3)


class Fake:
    """A launcher of results that tell the seed, until it is stopped."""

    def __init__(self, stop_after=99, error=KeyboardInterrupt):
        self.seen, self.stop_after, self.error = [], stop_after, error

    def __call__(self, cell, data):
        if len(self.seen) == self.stop_after:
            raise self.error("stopped")
        self.seen.append(cell)
        return {"fingerprint": fingerprint(cell, data.fingerprint), "seed": cell.seed}


def cells(count):
    return [dataclasses.replace(CELL, seed=seed) for seed in range(count)]


def test_the_data_are_split_by_prompt_once(data, tmp_path, tiny_policy):
    assert shared_prompts([data.train, data.heldout]) == 0
    assert (len(RolloutReader(data.train)), len(RolloutReader(data.heldout))) == (21, 9)
    assert data.longest_response <= 8 and data.longest_sequence == data.longest_response + 2
    assert data.share_truncated == 0.0
    before = data.train.stat().st_mtime_ns
    again = prepare_data(
        tmp_path / "rollouts", tmp_path / "out", policy=tiny_policy, heldout_prompts=3
    )
    assert again == data and data.train.stat().st_mtime_ns == before
    other = prepare_data(
        tmp_path / "rollouts", tmp_path / "out", policy=tiny_policy, heldout_prompts=4
    )
    assert other.fingerprint != data.fingerprint and other.folder != data.folder


def test_held_out_rollouts_of_their_own(tmp_path, tiny_policy):
    train, held = write(tmp_path / "a"), write(tmp_path / "b", first=20, count=4)
    data = prepare_data(train, tmp_path / "out", policy=tiny_policy, heldout=held)
    assert (data.train, data.heldout) == (train, held)
    assert len(RolloutReader(data.subset(4, 2))) == 8
    overlapping = write(tmp_path / "c", first=8, count=4)
    with pytest.raises(ValueError, match="2 prompts are both in"):
        prepare_data(train, tmp_path / "out", policy=tiny_policy, heldout=overlapping)


def test_rollouts_of_another_tokenizer_are_refused(tmp_path, tiny_policy):
    path = write(tmp_path / "foreign", sha="another")
    with pytest.raises(ValueError, match="written with tokenizer another"):
        prepare_data(path, tmp_path / "out", policy=tiny_policy)


def test_the_first_samples_of_every_prompt_are_judged_on(data):
    rows = heldout_rows(data.heldout, samples=2)
    assert len(rows) == 6 and {row.sample_id for row in rows} == {0, 1}
    with pytest.raises(ValueError, match="at least 1, got 0"):
        heldout_rows(data.heldout, samples=0)


def test_every_field_and_the_data_change_the_fingerprint():
    changed = {
        "trunk": "2x16",
        "target": "length",
        "precision": "bfloat16",
        "weighting": "trajectory_mean",
        "grouped": True,
    }
    seen = {fingerprint(CELL, "data"), fingerprint(CELL, "other data")}
    for number, field in enumerate(dataclasses.fields(Cell), start=3):
        now = getattr(CELL, field.name)
        value = changed.get(field.name, now * 1.1 if isinstance(now, float) else (now or 0))
        value = value + 1 if type(value) is int else value
        seen.add(fingerprint(dataclasses.replace(CELL, **{field.name: value}), "data"))
        assert len(seen) == number, field.name
    assert fingerprint(dataclasses.replace(CELL), "data") in seen


def test_two_processes_leave_results_that_this_process_repeats(data, tmp_path):
    grid = [CELL, dataclasses.replace(CELL, target="log_length", grouped=True)]
    results = run_grid([*grid, CELL], data, tmp_path / "out", jobs=2)
    assert len(results) == 2
    for cell in grid:
        result = results[cell]
        assert result["fingerprint"] == fingerprint(cell, data.fingerprint)
        assert Cell(**result["cell"]) == cell
        assert [point["step"] for point in result["curve"]] == [2, 4]
        assert result["final"] == result["curve"][-1] and result["final"]["mse"] > 0
        model = build(cell, data.tokenizer, max_positions=data.longest_sequence)
        assert result["parameters"] == model.num_parameters()
    assert results[grid[0]]["final"] != results[grid[1]]["final"]
    fake = Fake()
    assert run_grid(grid, data, tmp_path / "out", jobs=0, launcher=fake) == results
    assert fake.seen == []  # all were there


def test_a_stopped_grid_goes_on_where_it_was(data, tmp_path):
    first, second = Fake(stop_after=2), Fake()
    with pytest.raises(KeyboardInterrupt):
        run_grid(cells(4), data, tmp_path / "out", jobs=0, launcher=first)
    results = run_grid(cells(4), data, tmp_path / "out", jobs=0, launcher=second)
    assert first.seen == cells(4)[:2] and second.seen == cells(4)[2:]
    assert [result["seed"] for result in results.values()] == [0, 1, 2, 3]


def test_changed_settings_are_new_runs(data, tmp_path):
    fake = Fake()
    run_grid([CELL], data, tmp_path / "out", jobs=0, launcher=fake)
    longer = dataclasses.replace(CELL, steps=5)
    run_grid([longer], data, tmp_path / "out", jobs=0, launcher=fake)
    run_grid(
        [CELL], dataclasses.replace(data, fingerprint="x"), tmp_path / "out", jobs=0, launcher=fake
    )
    assert fake.seen == [CELL, longer, CELL]


def test_failures_are_named_after_the_others_are_done(data, tmp_path):
    bad = dataclasses.replace(CELL, trunk=str(tmp_path / "nothing"))
    with pytest.raises(RunsFailed, match=r"1 of 2 runs failed(.|\n)*exit status 1") as error:
        run_grid([bad, CELL], data, tmp_path / "out")
    done = [path.stem for path in (tmp_path / "out" / "cells").glob("*.json")]
    assert done == [fingerprint(CELL, data.fingerprint)]
    assert f"{fingerprint(bad, data.fingerprint)}.log" in str(error.value)
    with pytest.raises(RunsFailed, match="stopped"):
        run_grid([bad], data, tmp_path / "out", jobs=0, launcher=Fake(0, RunsFailed))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"gamma": 1.0}, "gamma must be in"),
        ({"target": "log"}, "target must be one of return"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"trunk": "2x33"}, "LAYERSxWIDTH with a width that divides by 8"),
    ],
)
def test_a_run_that_cannot_be_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(CELL, **fields)


def test_too_many_prompts_are_refused_before_anything_runs(data, tmp_path):
    with pytest.raises(ValueError, match="7 unique prompts, 9 were asked for"):
        run_grid([dataclasses.replace(CELL, prompts=9)], data, tmp_path / "out")
    with pytest.raises(ValueError, match="jobs must be at least 0"):
        run_grid([CELL], data, tmp_path / "out", jobs=-1)


def test_a_trunk_is_a_size_or_a_model():
    assert fresh_size("3x96") == (3, 96)
    for name in ("models/2x64b", "x", "2x", "gpt", "org/model-3x"):
        assert fresh_size(name) is None


def test_a_trunk_can_be_the_first_blocks_of_a_model(tiny_policy):
    def parameters(trunk):
        cell = dataclasses.replace(CELL, trunk=trunk)
        return {
            n: p.shape for n, p in build(cell, tiny_policy, max_positions=64).named_parameters()
        }

    whole, first = parameters(f"{tiny_policy}"), parameters(f"{tiny_policy}@1")
    assert parameters(f"{tiny_policy}@2") == whole
    assert set(whole) - set(first) == {name for name in whole if ".layers.1." in name}
    with pytest.raises(ValueError, match="has 2 blocks, its first 3 were asked for"):
        parameters(f"{tiny_policy}@3")


@pytest.mark.slow
def test_a_grid_killed_with_signal_9_goes_on(data, tmp_path, tiny_policy):
    arguments = f"""--rollouts {tmp_path / "rollouts"} --policy {tiny_policy} --heldout-prompts 3
        --trunks 1x16,1x32 --trunk 1x16 --prompts 2,4 --samples 1,2 --seeds 1 --steps 4
        --evaluations 2 --out {tmp_path / "out"}"""
    command = [sys.executable, "-m", "recipes.paper_grids", "scaling", *arguments.split()]
    folder, deadline = tmp_path / "out" / "cells", time.monotonic() + 120
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(folder.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert 1 <= len(kept) < 4  # trunks 2, prompts and samples one more each
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["runs"] == 4
    assert len(list(folder.glob("*.json"))) == 4
    # The run at hand may have ended by itself; the finished ones were not done again.
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
