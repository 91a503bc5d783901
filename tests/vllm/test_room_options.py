"""Memory, context and dtype of `lenvm sample | serve`: do they reach vLLM?"""

import pytest

from lenvm_rl.guidance.exact.memory import parse_bytes
from lenvm_rl.vllm import sample, serve
from tests.cli import command_line
from tests.vllm.fake_engine import FakeLLM


@pytest.fixture
def invoke(vllm, lenvm, monkeypatch, tmp_path):
    """A command of three demo prompts; returns what its engine was started with."""
    started = {}

    def engine(*args, **settings):
        started.update(settings)
        return FakeLLM(context=640)

    monkeypatch.setattr(sample, "start_llm", engine)

    def run(*words):
        given = ["sample", "--engine", "vllm", "--policy", "demo", "--prompts", "demo:3"]
        assert command_line.run(*given, "--out", str(tmp_path / "out"), *words)["rows"] > 0
        return started

    return run


def test_a_guided_run_makes_an_engine_for_itself(invoke, lenvm):
    words = ["--lenvm", str(lenvm), "--at-most", "4", "-n", "2", "--max-tokens", "20"]
    found = invoke(*words)
    assert found["max_num_seqs"] == 6 and 20 < found["max_model_len"] < 100
    options = found["additional_config"]["lenvm"]
    assert options["dtype"] == "auto" and parse_bytes(options["memory"]) > 0
    assert found["logits_processors"] == ["lenvm_rl.vllm:LengthGuidance"]
    assert found["logprobs_mode"] == "processed_logprobs"


def test_a_guided_run_takes_what_it_is_told(invoke, lenvm):
    found = invoke(
        "--lenvm", str(lenvm), "--at-most", "4", "--max-tokens", "20",
        "--max-model-len", "512", "--max-num-seqs", "2", "--lenvm-memory", "64MiB",
        "--lenvm-dtype", "float32",
    )  # fmt: skip
    assert (found["max_model_len"], found["max_num_seqs"]) == (512, 2)
    options = found["additional_config"]["lenvm"]
    assert (options["memory"], options["dtype"]) == ("64MiB", "float32")


def test_sample_makes_an_engine_for_its_run_or_takes_what_it_is_told(invoke, tmp_path):
    words = ["-n", "2", "--max-tokens", "20"]
    found = invoke(*words)
    assert "logits_processors" not in found
    assert found["max_num_seqs"] == 6 and 20 < found["max_model_len"] < 100
    words += ["--out", str(tmp_path / "told"), "--max-num-seqs", "3"]
    words += ["--engine-args", '{"max_model_len": 300}']
    found = invoke(*words)
    assert (found["max_num_seqs"], found["max_model_len"]) == (3, 300)


def test_serve_hands_its_options_to_the_engine(vllm, lenvm, monkeypatch):
    started = []
    monkeypatch.setattr(serve, "serve", lambda command, options: started.append(options))
    words = ["serve", "--policy", "demo", "--lenvm", str(lenvm), "--max-model-len", "128"]
    words += ["--lenvm-memory", "1GiB", "--lenvm-dtype", "bfloat16"]
    assert command_line.invoke(*words).exit_code == 0
    assert (started[0].memory, started[0].dtype) == ("1GiB", "bfloat16")
