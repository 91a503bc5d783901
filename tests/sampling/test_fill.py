"""Whoever makes completions: none is lost, none twice, and what is not made is accounted for."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.rollouts import RolloutReader, RolloutWriter, split_by_prompt
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.progress import SamplingCounts, _Lines
from lenvm_rl.sampling.run import (
    SamplingRun,
    Task,
    TokenSampling,
    completion_seed,
    forced_end,
    lenvm_facts,
)

TASKS = [Task(prompt_id=f"p{i}", prompt_ids=[5, i], n=3, max_tokens=9) for i in range(4)]
AT_MOST = GuidanceSettings(mode="at_most", target=4)
ALL = {(f"p{i}", k) for i in range(4) for k in range(3)}


def run_of(**fields):
    return SamplingRun(**{"tasks": TASKS, "policy": "fake", "tokenizer_sha": "fake", **fields})


def made(request):
    return request.rollout([int(request.task.prompt_id[1:]), request.sample_id], "length")


def engine(order=list, stop_after=10**9, fails=()):
    """Makes everything in the order given; stops as by a kill; fails on the keys `fails`."""

    def produce(requests, resumed):
        produce.resumed = resumed
        for count, request in enumerate(order(list(requests))):
            if count == stop_after:
                raise KeyboardInterrupt
            if request.key in fails:
                yield request.failure("refused", "why")
            else:
                yield made(request)

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
        return sorted(items, key=lambda request: -request.sample_id)

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

    def never(requests, resumed):
        raise AssertionError("started")

    report = fill(run_of(), tmp_path / "out", never)
    assert report.rows == 12 and report.tokens == 0 and report.completions_per_s == 0


def test_a_flush_makes_whole_prompts_safe(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(run_of(), tmp_path / "out", engine(stop_after=7), flush_seconds=0)
    shards = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert [len(RolloutReader(shard)) for shard in shards] == [3, 3, 1]


def test_an_engine_that_makes_a_completion_twice_is_caught(tmp_path):
    def twice(requests, resumed):
        request = next(requests)
        yield made(request)
        yield made(request)

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

    def produce(requests, resumed):
        for request in requests:
            fields = {"token_ids": [3, 1], "finish_reason": "length"}
            yield request.rollout(**fields | odd.get(request.sample_id, {}))

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

    def produce(requests, resumed):
        for request in requests:
            asked.append(request.task.prompt_id)
            yield made(request)

    for _ in range(2):
        report = fill(run_of(tasks=[refused, *TASKS]), tmp_path / "out", produce)
        assert (report.rows, report.failures) == (12, {"why": 2})
    assert asked == [name for name, _ in sorted(ALL)]
    nothing = fill(run_of(tasks=[refused]), tmp_path / "none", produce)
    assert nothing.rows == 0 and nothing.rows_missing == 2


def test_an_engine_is_closed_when_the_file_cannot_be_written(tmp_path, monkeypatch):
    closed = []

    def produce(requests, resumed):
        try:
            for request in requests:
                yield made(request)
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
        ({"stream": "other"}, "same arguments, or write to another directory"),
        (
            {"tasks": [replace(task, guidance=AT_MOST) for task in TASKS]},
            "with guidance None, this",
        ),
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


def test_throughput_share_truncated_and_remaining_time_are_shown():
    clock = Clock()
    counts = SamplingCounts(total=100, clock=clock)
    run = run_of()
    row = made(run.request(TASKS[0], 0))  # two tokens, truncated
    whole = run.request(TASKS[0], 0).rollout([5] * 10, "stop")
    for _ in range(10):
        counts.add(whole, new=False)
    for _ in range(20):
        counts.add(row)
    counts.fail("refused", 5)
    clock.now = 10.0
    assert counts.rates() == (2.0, 4.0) and counts.left == 65
    assert counts.line() == "30/100  2.0/s  4 tok/s  truncated 66.7%  failed 5  left 0:00:32"
    clock.now = 100.0  # nothing for 90 seconds: the last minute counts
    counts.rates()
    clock.now = 165.0
    assert counts.rates() == (0.0, 0.0) and counts.line().endswith("left -")


def test_logs_get_a_line_now_and_then(monkeypatch):
    from lenvm_rl.sampling import progress as sampling_progress

    clock, lines = Clock(), []
    monkeypatch.setattr(sampling_progress.time, "monotonic", clock)
    counts = SamplingCounts(total=3, clock=clock)
    show = _Lines(counts, lines.append, "unguided")
    row = made(run_of().request(TASKS[0], 0))
    for now in (10.0, 31.0, 40.0):
        clock.now = now
        counts.add(row)
        show()
    assert [line.split()[:2] for line in lines] == [["unguided", "2/3"], ["unguided", "3/3"]]


# --- what a request asks for, and what its row says -------------------------------------------


def test_streams_name_the_random_numbers():
    named, plain = run_of(seed=3, stream="free"), run_of(seed=3)
    assert plain.request(TASKS[1], 2).sampling["seed"] == completion_seed(3, "p1", 2)
    assert named.request(TASKS[1], 2).sampling["seed"] == completion_seed(3, "free/p1", 2)
    assert run_of(own_seeds=False).request(TASKS[1], 2).sampling["seed"] is None


def test_rows_say_what_guided_them_and_each_may_be_guided_otherwise(tmp_path):
    guides = [AT_MOST, None, GuidanceSettings(mode="tilt", beta=0.0), replace(AT_MOST, target=9)]
    tasks = [replace(task, guidance=guide) for task, guide in zip(TASKS, guides, strict=True)]
    run = run_of(tasks=tasks, lenvm={"lenvm": "here"})
    with pytest.raises(KeyboardInterrupt):
        fill(run, tmp_path / "out", engine(stop_after=7))
    report = fill(run, tmp_path / "out", engine())
    assert report.rows_resumed == 7 and report.rows == 12
    found = {row.prompt_id: row.guidance for row in RolloutReader(tmp_path / "out").iter_rows()}
    asked = {"lenvm": "here", "lenvm_mode": "at_most", "lenvm_target": 4}
    assert found == {"p0": asked, "p1": None, "p2": None, "p3": {**asked, "lenvm_target": 9}}
    assert report.mean_deviation == pytest.approx((2 / 4 + 7 / 9) / 2), "two tokens each"
    assert fill(run_of(), tmp_path / "free", engine()).mean_deviation is None
    split_by_prompt(tmp_path / "out", tmp_path / "a", tmp_path / "b", heldout_prompts=1, seed=0)
    for row in RolloutReader(tmp_path / "b").iter_rows():
        assert row.guidance == found[row.prompt_id]


@pytest.mark.parametrize(
    ("guidance", "ids", "reason", "expected"),
    [
        (AT_MOST, [5, 6, 7, 8, 1], "stop", ([5, 6, 7, 8], "length")),
        (AT_MOST, [5, 6, 7, 1], "stop", ([5, 6, 7, 1], "stop")),  # it ended by itself before
        (AT_MOST, [5, 6, 7, 8, 9], "length", ([5, 6, 7, 8, 9], "length")),
        (replace(AT_MOST, count_eos=True), [5, 6, 7, 1], "stop", ([5, 6, 7], "length")),
        (replace(AT_MOST, force_eos=False), [5, 6, 7, 8, 1], "stop", ([5, 6, 7, 8, 1], "stop")),
        (replace(AT_MOST, mode="equal"), [5, 6, 7, 8, 1], "stop", ([5, 6, 7, 8, 1], "stop")),
        (replace(AT_MOST, mode="equal", force_eos=True), [5, 6, 7, 8, 1], "stop",
         ([5, 6, 7, 8], "length")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("max_tokens", [5, 9])
def test_an_end_that_guidance_forced_is_not_the_policys(
    guidance, ids, reason, expected, max_tokens
):
    task = Task(prompt_id="p", prompt_ids=[2], n=1, max_tokens=max_tokens, guidance=guidance)
    row = run_of(tasks=[task]).request(task, 0).rollout(ids, reason, ids)
    assert (row.response_ids, row.finish_reason) == expected
    assert row.response_logprobs == row.response_ids
    whole = reason == "length" and max_tokens > len(ids)  # such a row the limit did not end either
    assert forced_end(row) == (reason != row.finish_reason or whole)


def test_a_value_model_trained_further_is_another_one(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    before = lenvm_facts(tmp_path)
    assert before == lenvm_facts(tmp_path) and before["lenvm"] == str(tmp_path)
    weights.write_bytes(b"2")
    assert lenvm_facts(tmp_path) != before
    assert lenvm_facts("served") == {"lenvm": "served"} and lenvm_facts(None) == {"lenvm": None}


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -2},
     {"min_p": 1.5}],
)  # fmt: skip
def test_distributions_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TokenSampling(**wrong)


def test_pictures_are_kept_once_beside_the_rows(tmp_path):
    image = "data:image/png;base64,AAEC"
    tasks = [replace(task, images=(image,)) for task in TASKS]
    fill(run_of(tasks=tasks), tmp_path / "out", engine())
    reader = RolloutReader(tmp_path / "out")
    names = {tuple(row.pictures) for row in reader.iter_rows()}
    assert len(names) == 1
    [[name]] = names
    assert reader.media[name].data == b"\0\1\2" and reader.media[name].mime == "image/png"
