"""Is there a way back after a kill at any moment?"""

import json

import pytest

from lenvm_rl.verl import checkpoint


def write_step(root, step, *, state=None, keep=None, whole=True):
    directory = checkpoint.step_directory(root, step)
    (directory / "critic").mkdir(parents=True)
    (directory / "lenvm").mkdir()
    (directory / "lenvm" / "config.json").write_text(str(step))
    (directory / "critic" / "model_world_size_2_rank_0.pt").touch()
    if whole:
        checkpoint.complete(directory, state or {"gamma": 0.9}, keep=keep)
    return directory


def find(root, mode="auto", path=None):
    return checkpoint.find_checkpoint(root, mode=mode, path=path)


def test_a_complete_checkpoint_is_found_with_its_state(tmp_path):
    directory = write_step(tmp_path, 20, state={"gamma": 0.9, "source": {"seen": 3}})
    assert find(tmp_path) == directory and checkpoint.step_of(directory) == 20
    assert checkpoint.read_state(directory)["source"] == {"seen": 3}
    assert find(tmp_path, "disable") is None
    assert find(tmp_path, "resume_path", str(directory)) == directory


def test_nothing_to_resume_is_a_fresh_start(tmp_path):
    assert find(tmp_path) is None


def test_a_kill_while_writing_leaves_the_previous_step(tmp_path):
    first = write_step(tmp_path, 10)
    write_step(tmp_path, 20, whole=False)
    assert find(tmp_path) == first
    assert (tmp_path / "lenvm" / "config.json").read_text() == "10"
    again = checkpoint.step_directory(tmp_path, 20)
    checkpoint.complete(again, {}, keep=None)  # the resumed run writes the step again
    assert find(tmp_path) == again


def test_the_stable_path_follows_the_newest_model(tmp_path):
    for step in (10, 20):
        write_step(tmp_path, step)
        assert (tmp_path / "lenvm" / "config.json").read_text() == str(step)
    assert not list(tmp_path.rglob("*.tmp"))


def test_old_steps_go_after_the_pointer_has_moved(tmp_path):
    for step in (5, 10, 15, 100):
        write_step(tmp_path, step, keep=2)
    steps = sorted(path.name for path in tmp_path.glob("global_step_*"))
    assert steps == ["global_step_100", "global_step_15"]


@pytest.mark.parametrize(("keep", "kept"), [(2, [15, 100]), (1, [100]), (None, [5, 10, 15, 100])])
def test_parts_of_old_steps_are_retired_and_the_rest_stays(tmp_path, keep, kept):
    steps = [write_step(tmp_path, step) for step in (5, 10, 15, 100)]
    checkpoint.retire(steps[-1], ("lenvm", "length_critic"), keep=keep)
    assert [checkpoint.step_of(step) for step in steps if (step / "lenvm").exists()] == kept
    assert all((step / "critic").is_dir() for step in steps)


def test_an_incomplete_checkpoint_is_refused_by_name(tmp_path):
    directory = write_step(tmp_path, 20, whole=False)
    with pytest.raises(ValueError, match=r"global_step_20 is not a complete checkpoint"):
        find(tmp_path, "resume_path", str(directory))


@pytest.mark.parametrize("path", [None, "somewhere/else"])
def test_a_path_that_is_no_step_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match="give a global_step_N directory"):
        find(tmp_path, "resume_path", path)


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be disable, auto or resume_path; got 'yes'"):
        find(tmp_path, "yes")


def test_another_number_of_workers_is_refused_with_the_way_out(tmp_path):
    directory = write_step(tmp_path, 20)
    checkpoint.check_workers(directory, 2)
    with pytest.raises(ValueError, match=r"saved by 2 worker\(s\), this run has 1.*model.path="):
        checkpoint.check_workers(directory, 1)


def test_the_state_is_written_by_renaming(tmp_path):
    directory = write_step(tmp_path, 1)
    assert json.loads((directory / checkpoint.STATE).read_text()) == {"gamma": 0.9}
