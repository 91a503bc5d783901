"""`lenvm sample --server` against a real `vllm serve`, killed in the middle."""

import json
import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

from lenvm_rl.cli.sample import SamplingSettings, sample
from lenvm_rl.demo import policy_path
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.sampling.server.engine import ServerSettings
from lenvm_rl.vllm.serve import vllm_program

pytestmark = pytest.mark.slow
NAME = str(policy_path())
PROMPTS, N = 40, 6


@pytest.fixture(scope="module")
def server(vllm, tmp_path_factory):
    """Address of a plain vLLM server of the shipped policy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [vllm_program(), "serve", NAME, "--port", str(port), "--host", "127.0.0.1"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    own = ("VLLM_ENABLE_V1_MULTIPROCESSING",)  # of tests in one process
    environment = {name: value for name, value in os.environ.items() if name not in own}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    base = f"http://127.0.0.1:{port}"
    try:
        started = time.monotonic()
        while True:
            assert process.poll() is None and time.monotonic() - started < 600, log.read_text()
            try:
                if httpx.get(base + "/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield base
    finally:
        process.terminate()
        process.wait(120)


def rows_of(path):
    rows = {}
    for row in RolloutReader(path).iter_rows():
        assert (row.prompt_id, row.sample_id) not in rows
        rows[row.prompt_id, row.sample_id] = row.to_dict()
    return rows


def test_kill_9_loses_and_repeats_nothing(server, tmp_path, tokenizer):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lenvm_rl.cli", "sample", "--server", server, "--model", NAME]
    command += ["--prompts", f"demo:{PROMPTS}", "-n", str(N), "--max-tokens", "60"]
    command += ["--out", str(out), "--flush-seconds", "0", "--concurrency", "12"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(out.glob("part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -9
    before = rows_of(out)
    assert 0 < len(before) < PROMPTS * N

    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    after = rows_of(out)
    assert after.items() >= before.items()
    assert set(after) == {(f"demo-0-{i}", k) for i in range(PROMPTS) for k in range(N)}
    assert (report["rows"], report["rows_resumed"]) == (PROMPTS * N, len(before))
    prompts = {p.prompt_id: encode_prompt(tokenizer, p) for p in demo_prompts(PROMPTS, seed=0)}
    for (prompt_id, _), row in after.items():
        assert row["prompt_ids"] == prompts[prompt_id]
        ids = row["response_ids"]
        assert (row["finish_reason"] == "stop") == (ids[-1] == tokenizer.eos_token_id)
        assert len(ids) <= 60 and (row["finish_reason"] == "stop" or len(ids) == 60)


def test_a_prompt_over_the_context_and_one_near_it(server, tmp_path, tokenizer):
    words = "12 + 7 - 3 = ? "
    texts = {"short": words, "near": words * 39, "long": words * 200}
    asked = [
        Prompt(prompt_id=name, messages=[{"role": "user", "content": text}])
        for name, text in texts.items()
    ]
    lengths = {p.prompt_id: len(encode_prompt(tokenizer, p)) for p in asked}
    assert 240 < lengths["near"] < 640 < lengths["long"], lengths  # and 400 tokens do not fit
    report = sample(
        tmp_path,
        asked,
        server=ServerSettings(server=[server], model=NAME),
        sampling=SamplingSettings(n=2, max_tokens=400),
    ).figures
    assert report["failures"] == {"prompt over the context": 2} and report["rows"] == 4
    near = [row for row in RolloutReader(tmp_path).iter_rows() if row.prompt_id == "near"]
    assert all(row.length <= 640 - lengths["near"] for row in near)


def test_chat_and_text_give_the_same_kind_of_file(server, tmp_path):
    asked = demo_prompts(3, seed=1)
    for name, chosen in {"chat": {"chat": True}, "text": {"token_ids": "text"}}.items():
        report = sample(
            tmp_path / name,
            asked,
            server=ServerSettings(server=[server], model=NAME, **chosen),
            sampling=SamplingSettings(n=2, max_tokens=40),
        ).figures
        assert report["rows"] == 6 and not report["failures"], report
    assert RolloutReader(tmp_path / "text").metadata["retokenized"] is True
    assert "retokenized" not in RolloutReader(tmp_path / "chat").metadata
