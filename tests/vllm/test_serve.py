"""The command line of a guided server, and the request it shows."""

import json
import shlex
from contextlib import nullcontext
from importlib import import_module
from itertools import pairwise

import pytest

from lenvm_rl.demo import policy_path
from lenvm_rl.vllm import serve as serve_module
from lenvm_rl.vllm.options import GuidanceOptions
from lenvm_rl.vllm.serve import KV_BYTES, PROCESSOR, curl_line, serve, serve_command


def options_of(command):
    return dict(zip(command, command[1:], strict=False))


@pytest.fixture
def options(lenvm):
    return GuidanceOptions(checkpoint=str(lenvm), max_candidates=12)


def test_the_processor_is_named_by_class_path_and_given_its_lenvm(vllm, options):
    command = options_of(serve_command("policy", options, port=8123))
    assert command["serve"] == "policy" and command["--port"] == "8123"
    assert command["--logits-processors"] == PROCESSOR
    assert GuidanceOptions.read(json.loads(command["--additional-config"]), {}) == options
    assert command["--logprobs-mode"] == "processed_logprobs"
    assert command["--max-num-seqs"] == "64"
    neutral = json.loads(command["--override-generation-config"])
    assert neutral == {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    module, name = command["--middleware"].rsplit(".", 1)
    assert hasattr(import_module(module), name)


@pytest.mark.parametrize("extra", [["--logprobs-mode", "raw_logprobs"], ["--logprobs-mode=raw_x"]])
def test_what_the_user_says_wins(vllm, options, extra):
    command = serve_command("policy", options, extra=extra)
    assert command[-len(extra) :] == extra
    assert "processed_logprobs" not in command


def test_the_curl_line_is_one_request_that_asks_for_guidance():
    words = shlex.split(curl_line("policy", port=8123))
    assert words[:2] == ["curl", "http://127.0.0.1:8123/v1/chat/completions"]
    assert json.loads(words[-1])["vllm_xargs"] == {"lenvm_mode": "at_most", "lenvm_target": 60}


@pytest.mark.parametrize("word", ["--reasoning-parser", "--reasoning-parser=qwen3"])
def test_the_front_end_of_a_reasoning_server_knows_it(vllm, options, monkeypatch, word):
    started = []
    monkeypatch.setattr("os.execve", lambda *given: started.append(given))
    monkeypatch.delenv("LENVM_REASONING", raising=False)
    serve(serve_command("policy", options), options)
    serve(serve_command("policy", options, extra=[word, "qwen3"]), options)
    assert [environment.get("LENVM_REASONING") for _, _, environment in started] == [None, "1"]


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "added"),
    [
        ([], True),
        (["--kv-cache-memory-bytes=1000"], False),
        (["--gpu-memory-utilization", "0.3"], False),
    ],
)
@pytest.mark.parametrize("version", ["0.31.0+cpu", "0.31.0"])
def test_a_cpu_server_leaves_memory_to_others(vllm, options, monkeypatch, version, extra, added):
    monkeypatch.setattr(serve_module, "version", lambda name: version)
    monkeypatch.setattr(serve_module, "cpu_cache_bytes", lambda: 777)
    command = serve_command("policy", options, extra=extra)
    expected = ["777"] if added and "cpu" in version else []
    assert [y for x, y in pairwise(command) if x == KV_BYTES] == expected


@pytest.mark.parametrize(
    ("extra", "refused"),
    [
        ([], "of one request do not fit"),
        (["--max-num-seqs", "3", "--max-model-len=64"], None),
        (["--max-num-seqs=30", "--max-model-len", "64"], None),
        (["--max-model-len=200"], "lenvm-memory"),
        (["--max-model-len", "64k"], None),  # the engine's to refuse
        (["--max-num-seqs", "14", "--max-model-len", "64", "--dtype", "bfloat16"], None),
    ],
)
def test_a_server_whose_lenvm_does_not_fit_never_starts(vllm, lenvm, monkeypatch, extra, refused):
    options = GuidanceOptions(checkpoint=str(lenvm), max_candidates=12, memory="300KiB")
    with pytest.raises(ValueError, match=refused) if refused else nullcontext():
        serve_module.check_server(str(policy_path()), options, max_num_seqs=64, extra=extra)
