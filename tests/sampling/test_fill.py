"""Whoever makes completions: none is lost, none twice, and what is not made is accounted for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.rollouts import RolloutReader, RolloutWriter, split_by_prompt
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.progress import SamplingCounts, _Lines
from lenvm_rl.sampling.resume import Completed
from lenvm_rl.sampling.run import Failure, Sample, SamplingRun, Task

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


def test_a_completion_that_no_file_takes_is_a_failure_and_the_others_are_kept(tmp_path):
    """Whatever an engine returns for one completion, it costs that one."""
    odd = {
        0: {"token_ids": []},
        1: {"token_ids": [70, 1]},
        2: {"token_ids": [2**40, 1]},
        3: {"finish_reason": "stop", "token_ids": [5]},
        4: {"finish_reason": "abort"},
        5: {"logprobs": [0.0]},
        6: {"token_ids": None},
        7: {"token_ids": [63, 64]},
    }

    def produce(missing, resumed):
        for task, k in missing:
            fields = {"token_ids": [3, 1], "finish_reason": "length", **odd.get(k, {})}
            yield Sample(task=task, sample_id=k, **fields)

    tasks = [Task(prompt_id="p", prompt_ids=[5], n=10, max_tokens=9)]
    seen = []
    run = run_of(tasks=tasks, vocab_size=65, token_count=64, eos_ids=[1])
    report = fill(run, tmp_path / "out", produce, on_failure=seen.append)
    assert sorted(k for _, k in keys_of(tmp_path / "out")) == [7, 8, 9]
    assert report.failures == {
        "no response_ids": 1,
        "token id beyond the vocabulary": 1,
        "response_ids does not fit its column": 2,
        "stop without an end token": 1,
        "unknown finish reason": 1,
        "log-probabilities of another length": 1,
    }
    assert len(seen) == 7 and report.rows_missing == 7
    assert report.rows_with_unknown_ids == 1
    assert fill(run, tmp_path / "out", produce).rows_with_unknown_ids == 1, "read off the file"


def test_prompts_without_token_ids_are_counted_and_asked_of_no_engine(tmp_path):
    refused = Task(prompt_id="r", prompt_ids=[], n=2, max_tokens=9, refused=("why", "because"))
    asked = []

    def produce(missing, resumed):
        for task, k in missing:
            asked.append(task.prompt_id)
            yield made(task, k)

    for _ in range(2):
        report = fill(run_of(tasks=[refused, *TASKS]), tmp_path / "out", produce)
        assert (report.rows, report.failures) == (12, {"why": 2})
    assert asked == [name for name, _ in sorted(ALL)]
    nothing = fill(run_of(tasks=[refused]), tmp_path / "none", produce)
    assert nothing.rows == 0 and nothing.rows_missing == 2


def test_an_engine_is_closed_when_the_file_cannot_be_written(tmp_path, monkeypatch):
    closed = []

    def produce(missing, resumed):
        try:
            for task, k in missing:
                yield made(task, k)
        finally:
            closed.append(True)

    def full(self, rows):
        raise OSError("no space left on device")

    monkeypatch.setattr(RolloutWriter, "append", full)
    with pytest.raises(OSError, match="no space left"):
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
    found = Completed({(f"p{i}", 0) for i in range(10)}, tokens=100, truncated=0)
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
    from lenvm_rl.sampling import progress as sampling_progress

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
