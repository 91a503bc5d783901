"""`lenvm sample --engine vllm | ray`: engines in this process and on a cluster fill one file."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest

from lenvm_rl.demo import policy_path
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.sampling.encoding import tasks_of_prompts
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.run import EngineFacts, SamplingRun, Task
from lenvm_rl.vllm import ray_engine, sample
from lenvm_rl.vllm.offline import VllmEngine
from lenvm_rl.vllm.ray_engine import RayEngine, RayWorker, work_blocks
from lenvm_rl.vllm.sample import VllmSettings, open_engine
from tests.vllm import fake_engine
from tests.vllm.conftest import ENGINE
from tests.vllm.fake_engine import FakeLLM

AT_MOST = GuidanceSettings(mode="at_most", target=4)
FACTS = EngineFacts(policy="fake", tokenizer_sha="fake", own_seeds=False)


def run_of(prompts=3, n=3, **fields):
    tasks = [
        Task(prompt_id=f"p{i}", prompt_ids=[5, 6 + i], n=n, max_tokens=9) for i in range(prompts)
    ]
    return SamplingRun(**{"tasks": tasks, **vars(FACTS), **fields})


def keys_of(path):
    """Every key, each once; the completion is the one that the prompt asks of the fake engine."""
    keys = set()
    for row in RolloutReader(path).iter_rows():
        key = row.prompt_id, row.sample_id
        assert key not in keys and list(row.response_ids) == [row.prompt_ids[-1] + 1, 1]
        keys.add(key)
    return keys


def test_the_engine_is_kept_full_and_not_flooded(vllm, tmp_path):
    llm = FakeLLM(per_step=2)
    longest = []
    step = llm.step
    llm.step = lambda: longest.append(len(llm.waiting)) or step()
    run = run_of(prompts=5, n=4)
    report = fill(run, tmp_path / "out", VllmEngine(lambda resumed: llm, FACTS, ahead=6))
    assert longest == [6] * 8 + [4, 2]
    assert report.rows == 20 and keys_of(tmp_path / "out") == {
        (f"p{i}", k) for i in range(5) for k in range(4)
    }


def test_an_interrupted_run_goes_on_with_another_random_stream(vllm, tmp_path):
    run, told = run_of(), []

    def start(resumed, steps=1):
        told.append(resumed)
        return FakeLLM(steps)

    with pytest.raises(KeyboardInterrupt):
        fill(run, tmp_path / "out", VllmEngine(start, FACTS))
    report = fill(run, tmp_path / "out", VllmEngine(lambda resumed: start(resumed, 9), FACTS))
    assert told == [0, 4] and report.rows_resumed == 4
    assert keys_of(tmp_path / "out") == {(f"p{i}", k) for i in range(3) for k in range(3)}


def test_prompts_over_the_context_are_reported_and_the_rest_is_made(vllm, tmp_path):
    long = Task(prompt_id="long", prompt_ids=list(range(64)), n=2, max_tokens=9)
    run = run_of(tasks=[*run_of(prompts=2).tasks, long])
    seen = []
    engine = VllmEngine(lambda resumed: FakeLLM(context=64), FACTS)
    report = fill(run, tmp_path / "out", engine, on_failure=seen.append)
    assert report.failures == {"prompt over the context": 2} and report.rows == 6
    assert {failure.task.prompt_id for failure in seen} == {"long"}
    assert seen[0].detail == "64 tokens, the engine's context is 64"


def test_log_probabilities_are_kept_where_asked_for(vllm, tmp_path):
    run = run_of()
    for logprobs in (False, True):
        engine = VllmEngine(lambda resumed: FakeLLM(), FACTS, logprobs=logprobs)
        fill(run, tmp_path / str(logprobs), engine)
        row = next(RolloutReader(tmp_path / str(logprobs)).iter_rows())
        assert row.response_logprobs == ([-0.5, -0.5] if logprobs else None)


def test_blocks_hold_whole_prompts_and_nothing_is_left_out():
    run = run_of(prompts=5, n=3)
    done, prompts = {("p1", 0), ("p1", 1), ("p1", 2), ("p3", 1)}, []
    blocks = list(work_blocks(run.missing(done), prompts, 4))
    assert [request.task.prompt_id for request in prompts] == ["p0", "p2", "p3", "p4"]
    assert [block.column("prompt").to_pylist() for block in blocks] == [[0, 1], [2, 3]]
    assert blocks[1].column("sample_ids").to_pylist() == [[0, 2], [0, 1, 2]]
    assert blocks[1].column("prompt_ids").to_pylist() == [[5, 9], [5, 10]]


def test_a_worker_completes_a_batch(vllm):
    seeds, engines = [], []

    def start(seed):
        seeds.append(seed)
        engines.append(FakeLLM(context=64))
        return engines[-1]

    workers = [RayWorker(start, logprobs=True) for _ in range(2)]
    assert seeds[0] != seeds[1], "two engines, two random streams"
    guided = replace(run_of(n=2).tasks[1], guidance=AT_MOST)
    run = run_of(tasks=[run_of(n=2).tasks[0], guided])
    [block] = work_blocks(run.missing(set()), [], 99)
    done = workers[0](block)
    rows = done.sort_by([("prompt", "ascending"), ("sample_id", "ascending")]).to_pylist()
    assert [(row["prompt"], row["sample_id"]) for row in rows] == [
        *itertools.product(range(2), (0, 1))
    ]
    assert rows[2]["response_ids"] == [8, 1] and rows[2]["response_logprobs"] == [-0.5, -0.5]
    assert {row["failure"] for row in rows} == {None}
    assert [params.extra_args for params in engines[0].asked] == [None] * 2 + [
        AT_MOST.to_args()
    ] * 2
    long = {**block.to_pylist()[0], "prompt_ids": list(range(64)), "sample_ids": [4, 7]}
    failed = workers[0](pa.Table.from_pylist([long], schema=block.schema)).to_pylist()
    assert [(row["sample_id"], row["failure"]) for row in failed] == [
        (4, "prompt over the context"),
        (7, "prompt over the context"),
    ]


def test_ray_results_are_rows_of_their_requests(vllm):
    run, prompts = run_of(prompts=2, n=2, lenvm={"lenvm": "x"}), []
    run = replace(run, tasks=[replace(task, guidance=AT_MOST) for task in run.tasks])
    [block] = work_blocks(run.missing(set()), prompts, 99)
    table = RayWorker(lambda seed: FakeLLM(context=64), logprobs=False)(block)
    done = SimpleNamespace(iter_batches=lambda **settings: [table])
    rows = list(ray_engine.results(done, prompts))
    assert {(row.prompt_id, row.sample_id) for row in rows} == {
        *itertools.product(("p0", "p1"), (0, 1))
    }
    assert all(row.guidance == {"lenvm": "x", **AT_MOST.to_args()} for row in rows)


@pytest.fixture(scope="module")
def ray_cluster():
    """A Ray of two CPUs, whose workers know the fake engine."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(fake_engine)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_ray_fills_what_an_interrupted_run_has_left(vllm, ray_cluster, tmp_path):
    run = run_of(prompts=20, n=3)
    with pytest.raises(KeyboardInterrupt):
        fill(run, tmp_path / "out", VllmEngine(lambda resumed: FakeLLM(steps=3), FACTS))
    engine = RayEngine(fake_engine.start, FACTS, engines=2, batch_size=6)
    report = fill(run, tmp_path / "out", engine)
    assert report.rows_resumed == 12 and report.rows == 60
    assert keys_of(tmp_path / "out") == {(f"p{i}", k) for i in range(20) for k in range(3)}


@pytest.mark.slow
def test_ray_starts_an_engine_that_died_again(vllm, ray_cluster, tmp_path):
    run = run_of(prompts=8, n=2)
    mark = str(tmp_path / "died")
    report = fill(
        run,
        tmp_path / "out",
        RayEngine(fake_engine.dies_once(mark), FACTS, engines=1, batch_size=4),
    )
    assert (tmp_path / "died").exists() and report.rows == 16 and not report.failures
    assert keys_of(tmp_path / "out") == {(f"p{i}", k) for i in range(8) for k in range(2)}


@pytest.mark.slow
@pytest.mark.parametrize("ray", [False, True], ids=["here", "ray"])
def test_the_shipped_policy_completes_prompts(vllm, tokenizer, tmp_path, request, ray):
    if ray:
        request.getfixturevalue("ray_cluster")
    tasks = tasks_of_prompts(tokenizer, demo_prompts(6, seed=4), n=4, max_tokens=80)
    settings = VllmSettings(logprobs=True, engine_args=ENGINE)
    engine = open_engine(str(policy_path()), tokenizer, tasks, settings=settings, ray=ray)
    report = fill(SamplingRun.of(engine, tasks), tmp_path / "out", engine)
    assert report.rows == 24 and report.rows_missing == 0
    rows = list(RolloutReader(tmp_path / "out").iter_rows())
    assert {(row.prompt_id, row.sample_id) for row in rows} == {
        (task.prompt_id, k) for task in tasks for k in range(4)
    }
    for row in rows:
        assert (row.finish_reason == "stop") == (row.response_ids[-1] == 1)
        assert len(row.response_logprobs) == row.length <= 80
        assert row.ground_truth and row.prompt_messages
    assert len({tuple(row.response_ids) for row in rows}) > 12, "samples differ"


def test_gpus_of_an_engine(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sample._gpus({"tensor_parallel_size": 4}) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert sample._gpus({}) == 1
    assert sample._gpus({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}) == 8


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"engine_args": "{"}, "--engine-args is not JSON"),
        ({"engine_args": "[1]"}, "--engine-args must be a JSON object"),
        ({"engines": 0}, "engines must be at least 1"),
    ],
)
def test_wrong_settings_are_sentences(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        VllmSettings(**wrong)


def test_further_settings_win_over_sizes():
    chosen = VllmSettings(max_model_len=64, max_num_seqs=8, engine_args='{"max_num_seqs": 3}')
    assert chosen.for_llm() == {"max_model_len": 64, "max_num_seqs": 3}
