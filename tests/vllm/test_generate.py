"""`lenvm sample --engine vllm` with guidance: one mode at a time, guided rows, runs that go on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from lenvm_rl.cli.sample import GuidanceFlags
from lenvm_rl.demo import policy_path
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.guidance.exact.memory import parse_bytes
from lenvm_rl.guidance.heads.q_head import scorer_memory
from lenvm_rl.model import load_tokenizer
from lenvm_rl.rollouts import RolloutReader, split_by_prompt
from lenvm_rl.sampling.encoding import tasks_of_rollouts
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.run import SamplingRun, Task, TokenSampling, lenvm_facts
from lenvm_rl.vllm import room, sample
from lenvm_rl.vllm.options import GuidanceOptions, checkpoint_config
from tests.vllm.fake_engine import FakeLLM


def test_one_mode_is_chosen():
    assert GuidanceFlags().settings() is None
    chosen = GuidanceFlags(equal=120).settings(top_k=9)
    assert (chosen.mode, chosen.target, chosen.top_k) == ("equal", 120, 9)
    assert GuidanceFlags(equal=120, soft=True).settings().mode == "equal_soft"
    assert GuidanceFlags(tilt=-5.0).settings().beta == -5.0
    assert GuidanceFlags(scale=0.5).settings().scale == 0.5


@pytest.mark.parametrize(
    "asked", [{"equal": 1, "at_most": 2}, {"at_most": 2, "soft": True}, {"soft": True}]
)
def test_two_modes_at_once_are_refused(asked):
    with pytest.raises(ValueError, match="choose one of"):
        GuidanceFlags(**asked).settings()


def tasks_of(n):
    return [Task(prompt_id=f"p{i}", prompt_ids=[5, 6 + i], n=n, max_tokens=9) for i in range(3)]


@pytest.fixture
def run(vllm, lenvm, monkeypatch, tmp_path):
    """A run whose engine dies after `steps` steps of four completions; returns its report."""
    tasks = tasks_of(3)

    def start(steps=99, *, guidance=AT_MOST, tasks=tasks, out=tmp_path / "out", **drawn):
        llm = FakeLLM(steps)
        monkeypatch.setattr(sample, "start_llm", lambda *args, **settings: llm)
        tasks = [replace(task, guidance=guidance) for task in tasks]
        policy = str(policy_path())
        engine = sample.open_engine(policy, load_tokenizer(policy), tasks, lenvm=lenvm)
        report = fill(SamplingRun.of(engine, tasks, TokenSampling(**drawn)), out, engine)
        return report, llm

    return start


AT_MOST = GuidanceSettings(mode="at_most", target=4)


def rows_of(path):
    rows = {}
    for row in RolloutReader(path).iter_rows():
        assert (row.prompt_id, row.sample_id) not in rows
        rows[row.prompt_id, row.sample_id] = row.to_dict()
    return rows


def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(run, tmp_path):
    whole, _ = run(out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(1)
    before = rows_of(tmp_path / "out")
    assert len(before) == 4
    report, engine = run()
    assert (report.rows, report.rows_resumed, report.tokens) == (9, 4, 2 * 5)
    assert len(engine.asked) == 5
    after = rows_of(tmp_path / "out")
    assert after == rows_of(tmp_path / "whole") and after.items() >= before.items()
    again, engine = run()
    assert (again.rows_resumed, again.tokens_per_s, engine.asked) == (9, 0.0, [])
    for figure in ("rows", "mean_length", "share_truncated", "mean_deviation"):
        assert getattr(again, figure) == getattr(whole, figure)
    assert again.mean_deviation == 0.75, "one token without EOS where four were asked for"


def test_rows_say_what_guided_them_and_unguided_rows_say_nothing(run, tmp_path, lenvm):
    run()
    guidance = {**lenvm_facts(lenvm), "lenvm_mode": "at_most", "lenvm_target": 4}
    assert all(row.guidance == guidance for row in RolloutReader(tmp_path / "out").iter_rows())
    run(guidance=GuidanceSettings(), out=tmp_path / "plain")
    assert all(row.guidance is None for row in RolloutReader(tmp_path / "plain").iter_rows())
    split_by_prompt(tmp_path / "out", tmp_path / "a", tmp_path / "b", heldout_prompts=1, seed=0)
    assert all(row.guidance == guidance for row in RolloutReader(tmp_path / "b").iter_rows())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"guidance": GuidanceSettings(mode="at_most", target=5)}, "holds completions with guid"),
        ({"guidance": GuidanceSettings()}, "this run's is None"),
        ({"temperature": 0.5}, "same arguments, or write to another directory"),
        ({"tasks": tasks_of(2)}, "same arguments, or write to another directory"),
    ],
)
def test_what_another_run_has_written_is_not_gone_on_with(run, tmp_path, change, sentence):
    run()
    before = rows_of(tmp_path / "out")
    with pytest.raises(ValueError, match=sentence):
        run(**change)
    assert rows_of(tmp_path / "out") == before


# --- as much at once as the LenVM's memory has room for -----------------------------------------


@pytest.fixture
def roomy(vllm, lenvm, monkeypatch):
    """`beside_lenvm` for 20 prompts of 2 tokens and 38 of response, on a device of `free` bytes."""

    def make(free=1 << 30, given=None, **options):
        monkeypatch.setattr(room, "device_share", lambda settings: free)
        tasks = [Task(prompt_id=str(i), prompt_ids=[5, 6], n=1, max_tokens=38) for i in range(20)]
        policy = str(policy_path())
        given = {"dtype": "float32", **(given or {})}
        suits = room.room_of(policy, tasks, load_tokenizer(policy), given)
        asked = GuidanceOptions(checkpoint=str(lenvm), **options)
        return room.beside_lenvm(policy, asked, given, suits, total=len(tasks))

    return make


def test_all_completions_run_at_once_where_they_fit(roomy, lenvm):
    options, settings = roomy()
    assert (settings["max_num_seqs"], settings["max_model_len"]) == (20, 40)
    memory = scorer_memory(
        checkpoint_config(lenvm), dtype=torch.float32, max_candidates=40, fixed_shapes=False
    )
    assert parse_bytes(options.memory) == memory.cache(20, 40)
    tight = memory.cache(7, 40) + 5
    _, settings = roomy(memory=f"{tight}B")
    assert settings["max_num_seqs"] == 7
    _, settings = roomy(free=4 * tight)  # a quarter of it
    assert settings["max_num_seqs"] == 7
    options, settings = roomy(given={"max_num_seqs": 12}, memory=f"{tight}B")  # by turns
    assert settings["max_num_seqs"] == 12 and parse_bytes(options.memory) == tight


def test_what_the_user_wants_at_once_is_refused_where_it_does_not_fit(roomy):
    _, settings = roomy(given={"max_num_seqs": 3, "max_model_len": 100})
    assert (settings["max_num_seqs"], settings["max_model_len"]) == (3, 100)
    with pytest.raises(ValueError, match="of one request do not fit: .*--lenvm-memory"):
        roomy(memory="1KiB")


def test_prompts_are_told_apart(run):
    task = Task(prompt_id="p", prompt_ids=[5], n=1, max_tokens=9)
    with pytest.raises(ValueError, match="'p' occurs twice"):
        run(tasks=[task, task])
    with pytest.raises(ValueError, match="no prompts"):
        run(tasks=[])


@pytest.mark.slow
def test_kill_9_loses_and_repeats_nothing(vllm, lenvm, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    out = tmp_path / "out"
    program = (
        "import json\n"
        "from lenvm_rl.cli.sample import *\n"
        "from lenvm_rl.demo.prompts import demo_prompts\n"
        f"done = sample({str(out)!r}, demo_prompts(12, seed=0), policy={str(policy_path())!r},\n"
        f"    engine='vllm', lenvm={str(lenvm)!r}, guidance=GuidanceFlags(at_most=20),\n"
        "    sampling=SamplingSettings(n=2, max_tokens=60, flush_seconds=0, batch_size=4),\n"
        "    vllm=VllmSettings(engine_args={'enforce_eager': True}))\n"
        "print(json.dumps(done.figures))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 300
    while not list(out.glob("part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    before = rows_of(out)
    assert 2 <= len(before) < 24

    again = [sys.executable, "-c", program]
    result = subprocess.run(again, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.strip().splitlines()[-1])
    after = rows_of(out)
    assert after.items() >= before.items()
    assert set(after) == {(f"demo-0-{i}", k) for i in range(12) for k in range(2)}
    assert (report["rows"], report["rows_resumed"]) == (24, len(before))
    for row in RolloutReader(out).iter_rows():
        assert row.length <= 20 + (row.finish_reason == "stop")
        assert len(row.response_logprobs) == row.length
        assert all(logprob <= 1e-6 for logprob in row.response_logprobs)
    # Rows lie in the order in which they ended, every prompt is there once.
    found = [task.prompt_id for task in tasks_of_rollouts(out, n=1, max_tokens=9)]
    assert sorted(found) == sorted(f"demo-0-{i}" for i in range(12))
