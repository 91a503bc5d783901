"""Whoever makes completions: none is lost, none twice, and what is not made is accounted for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.rollouts import RolloutReader, split_by_prompt
from lenvm_rl.rollouts.fill import fill
from lenvm_rl.rollouts.resume import Completed
from lenvm_rl.rollouts.sampling_progress import SamplingCounts, _Lines
from lenvm_rl.rollouts.sampling_run import Failure, Sample, SamplingRun, Task

TASKS = [Task(prompt_id=f"p{i}", prompt_ids=[5, i], n=3, max_tokens=9) for i in range(4)]
ALL = {(f"p{i}", k) for i in range(4) for k in range(3)}


def run_of(**fields):
    return SamplingRun(**{"tasks": TASKS, "policy": "fake", "tokenizer_sha": "fake", **fields})


def made(task, sample_id):
    ids = [int(task.prompt_id[1:]), sample_id]
    return Sample(task=task, sample_id=sample_id, token_ids=ids, finish_reason="length")


def engine(order=list, stop_after=10**9, fails=()):
    """Makes everything in the order given; stops as by a kill; fails on the keys `fails`."""

    def produce(missing, resumed):
        produce.resumed = resumed
        for count, (task, k) in enumerate(order(list(missing))):
            if count == stop_after:
                raise KeyboardInterrupt
            if (task.prompt_id, k) in fails:
                yield Failure(task=task, sample_ids=[k], kind="refused", detail="why")
            else:
                yield made(task, k)

    return produce


def keys_of(path):
    keys = [(row.prompt_id, row.sample_id) for row in RolloutReader(path).iter_rows()]
    assert len(set(keys)) == len(keys)
    return keys


@given(
    stops=st.lists(st.integers(0, 12), max_size=4),
    seed=st.randoms(use_true_random=False),
    flush=st.sampled_from([1, 4, 4096]),
)
def test_however_often_it_is_stopped_every_completion_is_there_once(
    stops, seed, flush, tmp_path_factory
):
    out = tmp_path_factory.mktemp("fill") / "out"

    def shuffled(items):
        seed.shuffle(items)
        return items

    for stop in stops:
        try:
            fill(run_of(), out, engine(shuffled, stop), flush_rows=flush)
        except KeyboardInterrupt:
            continue
    report = fill(run_of(), out, engine(shuffled), flush_rows=flush)
    assert sorted(keys_of(out)) == sorted(ALL)
    assert report.rows == 12 and report.rows_missing == 0 and report.mean_length == 2


def test_completions_of_a_prompt_lie_side_by_side_in_order(tmp_path):
    def interleaved(items):
        return sorted(items, key=lambda item: -item[1])

    fill(run_of(), tmp_path / "out", engine(interleaved))
    keys = keys_of(tmp_path / "out")
    assert [k for _, k in keys] == [0, 1, 2] * 4
    assert len({name for name, _ in keys[:3]}) == 1


def test_failures_are_counted_by_kind_and_tried_again(tmp_path):
    seen = []
    fails = {("p1", 0), ("p1", 2), ("p3", 1)}
    report = fill(run_of(), tmp_path / "out", engine(fails=fails), on_failure=seen.append)
    assert report.failures == {"refused": 3} and report.rows_missing == 3 and report.rows == 9
    assert {(f.task.prompt_id, *f.sample_ids) for f in seen} == fails and seen[0].detail == "why"
    again = engine()
    report = fill(run_of(), tmp_path / "out", again)
    assert again.resumed == 9 and report.rows_resumed == 9 and not report.failures
    assert set(keys_of(tmp_path / "out")) == ALL


def test_when_nothing_is_missing_no_engine_is_started(tmp_path):
    fill(run_of(), tmp_path / "out", engine())

    def never(missing, resumed):
        raise AssertionError("started")

    report = fill(run_of(), tmp_path / "out", never)
    assert report.rows == 12 and report.tokens == 0 and report.completions_per_s == 0


def test_a_flush_makes_whole_prompts_safe(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(run_of(), tmp_path / "out", engine(stop_after=7), flush_seconds=0)
    shards = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert [len(RolloutReader(shard)) for shard in shards] == [3, 3, 1]


def test_an_engine_that_makes_a_completion_twice_is_caught(tmp_path):
    def twice(missing, resumed):
        item = next(missing)
        yield made(*item)
        yield made(*item)

    with pytest.raises(AssertionError, match="p0"):
        fill(run_of(), tmp_path / "out", twice)


def test_an_engine_is_closed_when_the_file_cannot_be_written(tmp_path):
    closed = []

    def produce(missing, resumed):
        try:
            for task, k in missing:
                yield Sample(task=task, sample_id=k, token_ids=[], finish_reason="stop")
        finally:
            closed.append(True)

    with pytest.raises(ValueError, match="response_ids is empty"):
        fill(run_of(), tmp_path / "out", produce)
    assert closed == [True]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"temperature": 0.5}, "same arguments, or write to another directory"),
        ({"policy": "other"}, "same arguments, or write to another directory"),
        ({"seed": 1}, "same arguments, or write to another directory"),
        ({"own_seeds": False}, "same arguments, or write to another directory"),
        ({"tasks": TASKS[:2]}, "same arguments, or write to another directory"),
        ({"guidance": {"lenvm": "x"}}, "holds completions with guidance"),
        ({"retokenized": True}, "differ in whether token ids"),
        ({"tokenizer_sha": "another"}, "tokenizer"),
    ],
)
def test_what_another_run_has_written_is_not_gone_on_with(tmp_path, change, sentence):
    fill(run_of(), tmp_path / "out", engine())
    before = keys_of(tmp_path / "out")
    with pytest.raises(ValueError, match=sentence):
        fill(run_of(**change), tmp_path / "out", engine())
    assert keys_of(tmp_path / "out") == before


def test_runs_without_prompts_or_samples_are_refused():
    with pytest.raises(ValueError, match="no prompts"):
        run_of(tasks=[])
    with pytest.raises(ValueError, match="'p0' occurs twice"):
        run_of(tasks=[TASKS[0], TASKS[0]])
    with pytest.raises(ValueError, match="at least 1 completion"):
        run_of(tasks=[Task(prompt_id="p", prompt_ids=[5], n=0, max_tokens=9)])


def test_splits_of_retokenized_files_say_so(tmp_path):
    fill(run_of(retokenized=True), tmp_path / "out", engine())
    assert RolloutReader(tmp_path / "out").metadata["retokenized"] is True
    split_by_prompt(tmp_path / "out", tmp_path / "a", tmp_path / "b", heldout_prompts=1, seed=0)
    assert RolloutReader(tmp_path / "b").metadata["retokenized"] is True
    fill(run_of(), tmp_path / "plain", engine())
    assert "retokenized" not in RolloutReader(tmp_path / "plain").metadata


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_throughput_share_cut_and_remaining_time_are_shown():
    clock = Clock()
    found = Completed({(f"p{i}", 0) for i in range(10)}, tokens=100, cut=0)
    counts = SamplingCounts(found, total=100, clock=clock)
    row = run_of().row(made(TASKS[0], 0))  # two tokens, cut
    for _ in range(20):
        counts.add(row)
    counts.fail("refused", 5)
    clock.now = 10.0
    assert counts.rates() == (2.0, 4.0) and counts.left == 65
    assert counts.line() == "30/100  2.0/s  4 tok/s  cut 66.7%  failed 5  left 0:00:32"
    clock.now = 100.0  # nothing for 90 seconds: the last minute counts
    counts.rates()
    clock.now = 165.0
    assert counts.rates() == (0.0, 0.0) and counts.line().endswith("left -")


def test_logs_get_a_line_now_and_then(monkeypatch):
    from lenvm_rl.rollouts import sampling_progress

    clock, lines = Clock(), []
    monkeypatch.setattr(sampling_progress.time, "monotonic", clock)
    counts = SamplingCounts(Completed(), total=3, clock=clock)
    show = _Lines(counts, lines.append)
    row = run_of().row(made(TASKS[0], 0))
    for now in (10.0, 31.0, 40.0):
        clock.now = now
        counts.add(row)
        show()
    assert [line.split()[1] for line in lines] == ["2/3", "3/3"], "after 30 s, and at the end"
