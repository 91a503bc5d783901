"""bench/pool.py: finished runs are not repeated, failures are told, no process is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from scripts.bench.pool import RunsFailed, fingerprint, run_missing

ROOT = Path(__file__).resolve().parents[2]


def square(n):
    """A run; module-level, so that a process finds it."""
    print(f"the square of {n}")
    if n < 0:
        raise ValueError(f"{n} is negative")
    if n > 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"square": n * n, "pid": os.getpid(), "threads": torch.get_num_threads()}


def test_runs_have_a_process_and_a_log_each_and_the_others_are_done_when_some_fail(tmp_path):
    todo = {tmp_path / "runs" / f"{n}.json": (n,) for n in (-1, 101, 2)}
    with pytest.raises(RunsFailed) as failed:
        run_missing(square, todo, jobs=3)
    said, log = str(failed.value), tmp_path / "runs" / "-1.log"
    assert "2 of 3 runs failed" in said and "call again" in said
    assert "exit status 1: ValueError: -1 is negative" in said and str(log) in said
    assert "exit status -9" in said
    found = json.loads((tmp_path / "runs" / "2.json").read_text())
    assert found["square"] == 4 and found["threads"] == 1 and found["pid"] != os.getpid()
    assert "the square of 2" in (tmp_path / "runs" / "2.log").read_text()
    only = {path: arguments for path, arguments in todo.items() if path.stem == "2"}
    assert run_missing(square, only, jobs=1) == [found], "what is there is not repeated"
    with pytest.raises(ValueError, match="at least 0, got -1"):
        run_missing(square, todo, jobs=-1)


def test_a_fingerprint_is_of_settings_and_weights(tmp_path):
    (tmp_path / "weights").write_bytes(b"1")
    one = fingerprint({"a": 1, "b": 2}, [tmp_path / "weights"])
    assert one == fingerprint({"b": 2, "a": 1}, [tmp_path / "weights"]) and len(one) == 12
    (tmp_path / "weights").write_bytes(b"2")
    assert one != fingerprint({"a": 1, "b": 2}, [tmp_path / "weights"])


PARENT = """
import os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from scripts.bench.pool import run_missing
import killed_run

if __name__ == "__main__":
    run_missing(killed_run.run, {{Path({out!r}): ({out!r},)}}, jobs=1)
"""
RUN = """
import os, time
from pathlib import Path

def run(out):
    Path(out + ".pid").write_text(str(os.getpid()))
    time.sleep(120)
"""


def test_a_worker_ends_with_a_bench_that_is_killed(tmp_path):
    out = tmp_path / "run.json"
    (tmp_path / "killed_run.py").write_text(RUN)
    (tmp_path / "parent.py").write_text(PARENT.format(root=str(ROOT), out=str(out)))
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], cwd=tmp_path)
    pid_file = Path(f"{out}.pid")
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    worker = int(pid_file.read_text())
    assert computes(worker)
    parent.kill()
    parent.wait()
    wait_for(lambda: not computes(worker))
    assert not out.exists()


def computes(pid):
    """Whether the process is there, and no zombie that nobody has waited for."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)
