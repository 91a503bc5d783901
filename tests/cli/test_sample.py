"""`lenvm sample --server`: figures on the last line, failures by kind, mistakes in sentences."""

import json
import subprocess
import sys
import threading
import time

import pytest

from lenvm_rl.rollouts import RolloutReader
from tests.cli.command_line import invoke, run
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
        (["--policy", "demo", "--equal", "9"], r"nothing to guide by: .* \(--lenvm\)"),
        (["--policy", "demo", "--equal", "9", "--at-most", "9"], "choose one of equal, at_most"),
        (["--policy", "demo", "--beta", "-9"], "--beta of `lenvm sample` is now --tilt"),
        (["--policy", "demo", "--rollouts", "x"], "exactly one of --prompts and --rollouts"),
        (["--policy", "demo", "--top-p", "0"], "top_p must be in"),
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


def test_generate_says_what_does_its_work_now():
    with pytest.raises(ValueError, match="`lenvm generate` is now `lenvm sample --engine vllm"):
        invoke("generate", "--model", "demo")


def test_a_guided_file_and_one_of_its_prompts(tmp_path):
    """Guided by the shipped LenVM in this process; its prompts are then completed unguided."""
    words = ["sample", "--policy", "demo", "-n", 2, "--max-tokens", 30]
    guided = [*words, "--lenvm", "demo", "--prompts", "demo:3", "--at-most", 12]
    figures = run(*guided, "--out", tmp_path / "guided")
    assert figures["rows"] == 6 and 0 <= figures["mean_deviation"] < 1
    assert run(*guided, "--out", tmp_path / "guided")["rows_resumed"] == 6
    rows = list(RolloutReader(tmp_path / "guided").iter_rows())
    for row in rows:
        assert row.length <= 12 + (row.finish_reason == "stop")
        assert (row.guidance["lenvm_mode"], row.guidance["lenvm_target"]) == ("at_most", 12)
        assert row.guidance["weights"] and len(row.response_logprobs) == row.length
    with pytest.raises(ValueError, match="holds completions with guidance .* this run's is None"):
        run(*words, "--prompts", "demo:3", "--out", tmp_path / "guided")
    again = [*words, "--rollouts", tmp_path / "guided", "--out", tmp_path / "free"]
    figures = run(*again, "--limit", 2, "--tilt", 0, "--top-k", 5)
    assert figures["rows"] == 4 and figures["mean_deviation"] is None
    for row in RolloutReader(tmp_path / "free").iter_rows():
        assert row.guidance is None and row.sampling["top_k"] == 5


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
