"""`lenvm sample --server`: figures on the last line, failures by kind, mistakes in sentences."""

import json
import subprocess
import sys
import threading
import time

import pytest

from lenvm_rl.rollouts import RolloutReader
from tests.command_line import invoke
from tests.sampling.openai_fake import serving, status
from tests.tiny import make_policy, make_tokenizer


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    make_policy("llama").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def sample(policy, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{i}"}) + "\n" for i in (2, 3, 4)))

    def start(*words):
        asked = ["sample", "--prompts", prompts, "--out", tmp_path / "out", "-n", 4, *words]
        return invoke(*asked)

    return start


def test_several_servers_fill_a_file(sample, policy, tmp_path):
    with serving() as one, serving() as two:
        result = sample(
            "--server", f"{one.url},{two.url}/v1", "--model", "tiny", "--tokenizer", policy,
            "--per-request", 1, "--concurrency", 2, "--json", tmp_path / "figures.json",
        )  # fmt: skip
        assert one.asked + two.asked == 12 and one.asked and two.asked
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout.strip().splitlines()[-1])
    assert figures["rows"] == 12 and figures["completions_per_s"] > 0 and not figures["failures"]
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert len(RolloutReader(tmp_path / "out")) == 12


def test_failures_are_listed_by_kind_and_the_exit_status_says_so(sample, policy, tmp_path):
    def behave(server, body, number):
        return status(422, "no [such] field") if body["prompt"] == [3] else None

    words = ["--model", "tiny", "--tokenizer", policy, "--retries", 0]
    with serving(behave) as server:
        result = sample("--server", server.url, *words)
    assert result.exit_code == 1
    figures = json.loads(result.stdout.strip().splitlines()[-1])
    assert figures["failures"] == {"status 422": 4} and figures["rows_missing"] == 4
    said = " ".join(result.stderr.split())
    assert "4 completions are missing; the same command tries them again." in said
    assert "4 status 422 (prompt '1':" in said and "no [such] field" in said
    with serving() as server:
        again = sample("--server", server.url, *words)
        assert server.asked == 4
    assert again.exit_code == 0 and len(RolloutReader(tmp_path / "out")) == 12


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--engine", "sglang", "--policy", "demo"],
            "--engine must be one of transformers",
        ),
        (["--engine", "server", "--policy", "demo"], "say its address, --server"),
        ([], "--policy is missing"),
        (["--server", "http://127.0.0.1:9"], "--policy is missing"),
        (["--server", ",", "--policy", "demo"], "no server given"),
        (["--server", "localhost:8000", "--policy", "demo"], "write http://HOST:PORT"),
        (["--server", "http://127.0.0.1:9", "--policy", "demo"], "no server answers"),
        (["--engine", "vllm", "--policy", "demo", "--engine-args", "{x"], "is not JSON"),
        (["--engine", "vllm", "--policy", "demo", "--engine-args", "[1]"], "must be a JSON object"),
        (
            ["--server", "http://127.0.0.1:9", "--policy", "demo", "--timeout", "0"],
            "timeout must be above 0",
        ),
    ],
)
def test_mistakes_end_with_a_sentence(sample, words, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        sample(*words)
    assert not list((tmp_path / "out").glob("part-*"))


@pytest.mark.slow
def test_kill_9_twice_loses_and_repeats_nothing(policy, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{2 + i}"}) + "\n" for i in range(30)))
    out = tmp_path / "out"
    gate = {"answers": 0, "open": threading.Event()}

    def behave(server, body, number):
        with server.lock:
            gate["answers"] -= 1
            stuck = gate["answers"] < 0
        if stuck:  # until the sampler has been killed
            gate["open"].wait(120)

    seen = 0
    with serving(behave) as server:
        words = ["sample", "--server", server.url, "--model", "tiny", "--tokenizer", str(policy)]
        words += ["--prompts", str(prompts), "--out", str(out), "-n", "5", "--per-request", "2"]
        command = [sys.executable, "-m", "lenvm_rl.cli", *words, "--concurrency", "4"]
        command += ["--flush-seconds", "0"]
        for answers in (20, 25):
            gate["answers"] = answers
            child = subprocess.Popen([*command, "--seed", "0"], stdout=subprocess.DEVNULL)
            deadline = time.monotonic() + 120
            while rows_in(out) < seen + 15 and time.monotonic() < deadline:
                time.sleep(0.01)
            child.kill()
            assert child.wait() == -9
            gate["open"].set()  # the requests of the dead are answered into the void
            while server.in_flight:
                time.sleep(0.01)
            gate["open"].clear()
            before, seen = seen, rows_in(out)
            assert before < seen < 150
        gate["answers"] = 10**9
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert (figures["rows"], figures["rows_resumed"]) == (150, seen)
    keys = [(row.prompt_id, row.sample_id) for row in RolloutReader(out).iter_rows()]
    assert len(keys) == 150 and set(keys) == {(str(i), k) for i in range(30) for k in range(5)}


def rows_in(out):
    return sum(len(RolloutReader(shard)) for shard in out.glob("part-*.parquet"))
