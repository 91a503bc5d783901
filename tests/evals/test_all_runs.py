"""Several evaluations: each once, whatever happens to the others."""

import pytest

from lenvm_rl.evals.run_all import Evaluation, run_all


class Recorder:
    """Evaluations that note that they ran; the one called `bad` fails while it may."""

    def __init__(self):
        self.ran, self.may_fail = [], True

    def evaluation(self, name, **settings):
        def run(folder):
            self.ran.append(name)
            (folder / "result.txt").write_text("x")
            if name == "bad" and self.may_fail:
                raise ValueError("the disk is square")

        return Evaluation(name=name, settings=settings, run=run)

    def all(self, **settings):
        return [self.evaluation(name, **settings) for name in ("first", "bad", "last")]


def test_one_failure_does_not_stop_the_rest_and_only_it_is_run_again(tmp_path):
    recorder, lines = Recorder(), []
    outcomes = run_all(recorder.all(), tmp_path, tell=lines.append)
    assert recorder.ran == ["first", "bad", "last"]
    assert outcomes.failed == {"bad": "the disk is square"} and not outcomes.kept
    assert set(outcomes.seconds) == {"first", "last"}
    assert "Traceback" in (tmp_path / "bad" / "failed.log").read_text()
    assert any("FAILED: the disk is square" in line for line in lines)
    recorder.may_fail = False
    again = run_all(recorder.all(), tmp_path)
    assert recorder.ran == ["first", "bad", "last", "bad"]
    assert again.kept == ["first", "last"] and not again.failed
    assert not (tmp_path / "bad" / "failed.log").exists()


def test_a_killed_one_goes_on_with_what_it_left(tmp_path):
    def interrupted(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([Evaluation(name="one", settings={}, run=interrupted)], tmp_path)
    seen = []

    def goes_on(folder):
        seen.append((folder / "half").exists())

    outcomes = run_all([Evaluation(name="one", settings={}, run=goes_on)], tmp_path)
    assert seen == [True] and "one" in outcomes.seconds


def test_force_begins_from_nothing(tmp_path):
    recorder = Recorder()
    recorder.may_fail = False
    run_all(recorder.all(), tmp_path)
    (tmp_path / "first" / "old").write_text("x")
    outcomes = run_all(recorder.all(), tmp_path, force=True)
    assert len(recorder.ran) == 6 and not outcomes.kept
    assert not (tmp_path / "first" / "old").exists()


def test_other_settings_are_refused_before_anything_runs(tmp_path):
    recorder = Recorder()
    recorder.may_fail = False
    run_all(recorder.all(seed=0, sizes=(1, 2)), tmp_path)
    run_all(recorder.all(seed=0, sizes=(1, 2)), tmp_path)  # a tuple comes back as a list
    with pytest.raises(ValueError, match="other settings .seed 0, now 1.*--force"):
        run_all(recorder.all(seed=1, sizes=(1, 2)), tmp_path)
    assert recorder.ran == ["first", "bad", "last"]


@pytest.mark.parametrize("force", [False, True])
def test_folders_of_others_are_left_alone(tmp_path, force):
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "thesis.txt").write_text("x")
    recorder = Recorder()
    with pytest.raises(ValueError, match="not made by this command"):
        run_all(recorder.all(), tmp_path, force=force)
    assert recorder.ran == [] and (tmp_path / "last" / "thesis.txt").exists()
