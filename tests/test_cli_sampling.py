"""`lenvm sample --server`: figures on the last line, failures by kind, mistakes in sentences."""

import json

import pytest
from typer.testing import CliRunner

from lenvm_rl import cli
from lenvm_rl.rollouts import RolloutReader
from tests.evals.openai_fake import serving, status
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
        return CliRunner().invoke(cli.app, [str(word) for word in asked], catch_exceptions=False)

    return start


def test_several_servers_fill_a_file(sample, policy, tmp_path):
    with serving() as one, serving() as two:
        result = sample(
            "--server", f"{one.url},{two.url}/v1", "--model", "tiny", "--tokenizer", policy,
            "--per-request", 1, "--concurrency", 2, "--json", tmp_path / "figures.json",
        )  # fmt: skip
        assert one.asked + two.asked == 12 and one.asked and two.asked
    assert result.exit_code == 0, result.output
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
        (["--engine", "sglang", "--policy", "demo"], "engine must be transformers, vllm or ray"),
        (["--engine", "server", "--policy", "demo"], "or give --server"),
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
