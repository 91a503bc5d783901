"""A real server: `lenvm serve`, requests of every kind, and what it refuses."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from lenvm_rl.demo import policy_path
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.evals.length_control import evaluate as length_control
from lenvm_rl.evals.tradeoff import evaluate as tradeoff
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.sampling.encoding import tasks_of_prompts
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.run import SamplingRun
from lenvm_rl.sampling.server.engine import ServerEngine, ServerSettings

pytestmark = pytest.mark.slow
NAME = str(policy_path())


@pytest.fixture(scope="module")
def server(vllm, lenvm, tmp_path_factory):
    """Base address of a running `lenvm serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "lenvm_rl.cli", "serve", "--policy", "demo"]
    command += ["--lenvm", str(lenvm), "--port", str(port), "--max-num-seqs", "16"]
    command += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", "67108864"]
    own = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_KVCACHE_SPACE")  # of tests in one process
    environment = {name: value for name, value in os.environ.items() if name not in own}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    base = f"http://127.0.0.1:{port}"
    try:
        _wait(base, process, log)
        yield base
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert "curl http" in log.read_text()


def _wait(base, process, log):
    started = time.monotonic()
    while time.monotonic() - started < 600:  # twenty seconds on a machine that is idle
        assert process.poll() is None, Path(log).read_text()[-3000:]
        try:
            if httpx.get(base + "/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(Path(log).read_text()[-3000:])


def body(prompt, args, **fields):
    return {
        "model": NAME,
        "prompt": prompt,
        "max_tokens": 80,
        "temperature": 1.0,
        "vllm_xargs": args,
        **fields,
    }


def complete(server, prompt, args, **fields):
    answer = httpx.post(server + "/v1/completions", json=body(prompt, args, **fields), timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_concurrent_requests_of_mixed_modes_obey(server, prompts):
    asked = [
        {"lenvm_mode": "at_most", "lenvm_target": 20},
        None,
        {"lenvm_mode": "at_least", "lenvm_target": 30},
        {"lenvm_mode": "tilt", "lenvm_beta": -10, "lenvm_top_k": 8, "lenvm_min_p": 0.01},
    ]
    jobs = [(prompts[i % 12], asked[i % 4]) for i in range(24)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda job: complete(server, *job), jobs))
    for (_, args), answer in zip(jobs, answers, strict=True):
        used = answer["usage"]["completion_tokens"]
        mode = (args or {}).get("lenvm_mode")
        assert mode != "at_most" or used <= 21, "20 tokens and EOS"
        assert mode != "at_least" or used >= 30


def test_streaming_and_chat(server):
    request = {
        "model": NAME,
        "messages": [{"role": "user", "content": "12 + 7 - 3 = ?"}],
        "max_tokens": 80,
        "stream": True,
        "stream_options": {"include_usage": True},
        "vllm_xargs": {"lenvm_mode": "at_most", "lenvm_target": 15, "lenvm_force_eos": True},
    }
    with httpx.stream("POST", server + "/v1/chat/completions", json=request, timeout=120) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]" and len(lines) > 3
    assert json.loads(lines[-2][6:])["usage"]["completion_tokens"] <= 16


def test_the_openai_client_can_ask(server, prompts):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server + "/v1", api_key="none")
    args = {"lenvm_mode": "at_most", "lenvm_target": 10}
    answer = client.completions.create(
        model=NAME, prompt=prompts[0], max_tokens=60, extra_body={"vllm_xargs": args}
    )
    assert answer.usage.completion_tokens <= 11


@pytest.mark.parametrize(
    ("args", "fields", "sentence"),
    [
        ({"lenvm_mode": "shorter"}, {}, "unknown lenvm_mode"),
        ({"lenvm_mode": "equal"}, {}, "lenvm_target is missing"),
        ({"lenvm_mode": "equal", "lenvm_target": -5}, {}, "lenvm_target"),
        ({"lenvm_mode": "equal", "lenvm_target": "ten"}, {}, "must be a number"),
        ({"lenvm_target": 5}, {}, "lenvm_mode is missing"),
        ({"lenvm_mode": "tilt", "lenvm_beta": 1, "lenvm_top_q": 2}, {}, "lenvm_top_q"),
        ({"lenvm_mode": "equal", "lenvm_target": 5, "lenvm_gamma": 0.5}, {}, "lenvm_gamma is 0.5"),
        ({"lenvm_mode": "equal", "lenvm_target": 5}, {"ignore_eos": True}, "ignore_eos"),
    ],
)
def test_bad_requests_get_400_and_the_remedy(server, prompts, args, fields, sentence):
    answer = httpx.post(
        server + "/v1/completions", json=body(prompts[0], args, **fields), timeout=60
    )
    assert answer.status_code == 400
    assert sentence in answer.text


@pytest.mark.parametrize(
    ("args", "fields", "sentence"),
    [
        (None, {"lenvm_mode": "at_most", "lenvm_target": 5}, "vllm_xargs"),
        (None, {"extra_body": {"lenvm_mode": "at_most"}}, "inside extra_body"),
        ({"lenvm_mode": "at_most", "lenvm_target": 5}, {"use_beam_search": True}, "beam search"),
    ],
)
def test_guidance_that_vllm_would_ignore_gets_400(server, prompts, args, fields, sentence):
    answer = httpx.post(
        server + "/v1/completions", json=body(prompts[0], args, **fields), timeout=60
    )
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]


def test_stop_strings_wait_for_at_least(server, prompts):
    asked = {"lenvm_mode": "at_least", "lenvm_target": 30}
    answer = complete(server, prompts[0], asked, stop=["="])
    assert answer["usage"]["completion_tokens"] > 30


def test_beta_nan_gets_400(server, prompts):
    text = json.dumps(body(prompts[0], {"lenvm_mode": "tilt", "lenvm_beta": float("nan")}))
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(server + "/v1/completions", content=text, headers=headers, timeout=60)
    assert answer.status_code in (400, 422)


def test_a_client_that_hangs_up_leaves_the_server_well(server, prompts):
    for _ in range(3):
        with httpx.stream(
            "POST",
            server + "/v1/completions",
            json=body(prompts[1], {"lenvm_mode": "at_least", "lenvm_target": 70}, stream=True),
            timeout=60,
        ) as answer:
            next(answer.iter_lines())
    done = complete(server, prompts[2], {"lenvm_mode": "at_most", "lenvm_target": 12})
    assert done["usage"]["completion_tokens"] <= 13
    assert httpx.get(server + "/health").status_code == 200


def test_evaluations_sample_from_it(server, tmp_path):
    """The control that a prompt asks for reaches the guide, and the run can be repeated."""
    settings = length_control.Settings(
        controls=("at_most", "at_least"), targets=(12,), max_tokens=100
    )
    prompts = demo_prompts(4, seed=5)
    given = {"grader": None, "connection": ServerSettings(server=(server,))}
    result = length_control.run(NAME, prompts, tmp_path, settings=settings, **given)
    assert result.figures["at_most_guided_score"] == 100
    at_least = [row for row in result.tables["points"] if row["control"] == "at_least"]
    guided = [row for row in at_least if row["method"] == "guided"]
    assert guided and all(row["length"] >= 12 for row in guided)
    assert result.figures["failed_requests"] == {}
    again = length_control.run(NAME, prompts, tmp_path, settings=settings, **given)
    assert again.to_dict() == result.to_dict(), "completions that are there are read"
    given["grader"] = lambda text, truth: True
    limited = tradeoff.Settings(betas=(), thinking_budgets=(8,), n=1, max_tokens=8)
    with pytest.raises(ValueError, match="reasoning"):
        tradeoff.run(NAME, prompts, tmp_path / "tradeoff", settings=limited, **given)


def test_samples_of_a_prompt_are_guided_together(server, lenvm, tmp_path):
    """Several completions in one request: each is steered, and each draws its own tokens."""
    guide = GuidanceSettings(mode="at_least", target=30)
    engine = ServerEngine.open(ServerSettings(server=[server], per_request=4), NAME, lenvm=lenvm)
    tasks = tasks_of_prompts(
        engine.tokenizer, demo_prompts(2, seed=6), n=4, max_tokens=80, guidance=guide
    )
    report = fill(SamplingRun.of(engine, tasks), tmp_path / "out", engine)
    assert report.rows == 8 and report.mean_deviation is not None
    rows = list(RolloutReader(tmp_path / "out").iter_rows())
    assert all(row.length >= 30 and row.guidance["lenvm_target"] == 30 for row in rows)
    assert len({tuple(row.response_ids) for row in rows}) > 4
