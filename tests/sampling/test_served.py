"""Evaluations against a local server that misbehaves on purpose; completions that are kept."""

import json
import math
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lenvm_rl.evals.length_control.lifebench_run import run_lifebench
from lenvm_rl.evals.length_control.lifebench_settings import LifebenchSettings
from lenvm_rl.evals.tradeoff.evaluate import TradeoffSettings
from lenvm_rl.evals.tradeoff.run import run_tradeoff
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.completion_cache import kept, lenvm_identity
from lenvm_rl.sampling.pictures import pictured
from lenvm_rl.sampling.served import ServedPolicy, ServedSampler
from lenvm_rl.sampling.transformers.sampler import Completion, Request
from tests.tiny import make_tokenizer

GOOD = {"choices": [{"token_ids": [7, 8, 1], "finish_reason": "stop"}]}


class Misbehaving:
    """Answers completions with the next of `script`, the last one for good: (status, body)."""

    def __init__(self, *script):
        self.script, self.bodies, self.paths = list(script), [], []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._send(200, {"data": [{"id": "policy"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.bodies.append(body)
                    outer.paths.append(self.path)
                    more = len(outer.script) > 1
                    status, answer = outer.script.pop(0) if more else outer.script[0]
                self._send(status, answer)

            def _send(self, status, answer):
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def connect(server, **fields):
    return ServedPolicy(server.url, concurrency=1, **{"sleep": lambda seconds: None, **fields})


def test_a_request_says_everything_and_its_guidance():
    request = Request([3, 4], 16, temperature=0.5, top_k=5, min_p=0.1, seed=9)
    guide = GuidanceSettings(mode="at_most", target=12)
    with Misbehaving((200, GOOD)) as server:
        policy = connect(server)
        [completion] = policy.generate([request], [guide])
        policy.generate([request], [None], fields={"thinking_token_budget": 6})
        connect(server, seeds=True).generate([request], [None])
    assert completion.token_ids == [7, 8, 1] and completion.finish_reason == "stop"
    first, second, third = server.bodies
    assert first["prompt"] == [3, 4] and first["max_tokens"] == 16 and first["model"] == "policy"
    assert (first["temperature"], first["top_k"], first["min_p"]) == (0.5, 5, 0.1)
    assert first["vllm_xargs"] == {"lenvm_mode": "at_most", "lenvm_target": 12}
    assert "seed" not in first and "vllm_xargs" not in second
    assert second["thinking_token_budget"] == 6 and third["seed"] == 9


def test_pictures_go_as_messages_and_guidance_with_them():
    prompt = Prompt(
        prompt_id="a",
        messages=[{"role": "user", "content": "<image>\nHow many?"}],
        images=["data:image/png;base64,AA"],
    )
    request = pictured(Request([3], 16, seed=2), prompt)
    assert (request.prompt_ids, request.max_tokens, request.seed) == ([3], 16, 2)
    guide = GuidanceSettings(mode="tilt", beta=-20.0)
    with Misbehaving((200, GOOD)) as server:
        [completion] = connect(server).generate([request], [guide])
    assert completion.token_ids == [7, 8, 1] and server.paths == ["/v1/chat/completions"]
    [body] = server.bodies
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    said = {"type": "text", "text": "How many?"}
    assert body["messages"] == [{"role": "user", "content": [image, said]}]
    assert body["vllm_xargs"] == {"lenvm_mode": "tilt", "lenvm_beta": -20.0}
    assert "prompt" not in body
    with pytest.raises(ValueError, match="not one <image> for each picture"):
        pictured(Request([3], 16), replace(prompt, images=[]))
    with pytest.raises(ValueError, match="has a picture by path"):
        pictured(Request([3], 16), replace(prompt, images=["a.png"]))


def test_busy_broken_and_garbled_answers_are_asked_again():
    waits = []
    script = [(429, {}), (500, {}), (200, b"<html>"), (200, {"choices": []}), (200, GOOD)]
    with Misbehaving(*script) as server:
        policy = connect(server, sleep=waits.append, delay=1.0)
        [completion] = policy.generate([Request([3], 8)], [None])
    assert completion.finish_reason == "stop" and not policy.failures
    assert waits == [1, 2, 4, 8] and len(server.bodies) == 5


def test_what_fails_in_the_end_is_a_failure_by_kind():
    requests = [Request([3], 8)] * 2
    with Misbehaving((200, GOOD), (503, {})) as server:
        policy = connect(server, retries=1)
        good, bad = policy.generate(requests, [None, None])
        assert (good.finish_reason, bad.finish_reason) == ("stop", "error")
        assert bad.token_ids == [] and policy.failures == {"status 503": 1}
        with pytest.raises(
            ValueError, match="all 2 requests to .* failed .*is the server still up"
        ):
            policy.generate(requests, [None, None])


def test_what_the_server_refuses_is_said():
    sentence = {"message": "unknown lenvm_mode 'off': ..."}
    with (
        Misbehaving((400, sentence)) as server,
        pytest.raises(ValueError, match="refuses a request with status 400: .*unknown lenvm_mode"),
    ):
        connect(server).generate([Request([3], 8)], [None])


def test_no_server_is_said_before_any_work():
    with Misbehaving((200, GOOD)) as server:
        url = server.url
    with pytest.raises(ValueError, match="no OpenAI-compatible server answers"):
        ServedPolicy(url)
    with pytest.raises(ValueError, match="no OpenAI-compatible server answers"):
        ServedPolicy("127.0.0.1")


def test_the_sampler_of_an_evaluation(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    with Misbehaving((200, GOOD)) as server:
        sampler = ServedSampler(connect(server), tmp_path)
        limited = sampler.with_fields(thinking_token_budget=6)
        limited.generate([Request([3], 8)], [None])
        sampler.generate([Request([3], 8)], [None])
    assert [body.get("thinking_token_budget") for body in server.bodies] == [6, None]
    assert sampler.identity != limited.identity


def test_lifebench_and_the_tradeoff_by_a_server(tmp_path):
    """Every answer has two tokens; the guide, the budgets and the words reach the server."""
    make_tokenizer().save_pretrained(tmp_path / "policy")
    asked = [Prompt(prompt_id="a", messages=[{"role": "user", "content": "w3"}], ground_truth="4")]
    with Misbehaving((200, GOOD)) as server:
        sampler = ServedSampler(connect(server), tmp_path / "policy")
        lifebench = run_lifebench(
            "unused",
            None,
            asked,
            tmp_path / "lifebench",
            settings=LifebenchSettings(controls=("at_least",), targets=(2, 5), max_tokens=9),
            server=sampler,
        )
        guides = [body["vllm_xargs"] for body in server.bodies if "vllm_xargs" in body]
        assert [guide["lenvm_target"] for guide in guides] == [2, 5]
        server.bodies.clear()
        tradeoff = run_tradeoff(
            "unused",
            None,
            asked,
            tmp_path / "tradeoff",
            grader=lambda text, truth: True,
            settings=TradeoffSettings(
                betas=(-5,), prompt_budgets=(7,), thinking_budgets=(3, 4), samples=1
            ),
            server=sampler,
        )
    assert [row["score"] for row in lifebench.tables["points"] if row["method"] == "guided"] == [
        100,
        pytest.approx(100 * math.exp(-5 * 3 / 5)),
    ]
    assert lifebench.figures["failed_requests"] == {}
    assert [body.get("thinking_token_budget") for body in server.bodies] == [None] * 3 + [3, 4]
    assert [row["length"] for row in tradeoff.tables["thinking"]] == [2, 2]
    assert (tmp_path / "tradeoff" / "tradeoff.png").stat().st_size > 0


def test_completions_are_kept_group_by_group(tmp_path):
    """A run that dies in its third group asks only for what is missing when it is started again."""
    asked = []

    def sample(requests, settings):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(requests))
        return [Completion([request.seed, 1], "stop", [-1.0, -2.0]) for request in requests]

    requests = [Request([3], 8, seed=seed) for seed in range(5)]
    guides = [GuidanceSettings(mode="at_most", target=n) for n in range(5)]
    with pytest.raises(KeyboardInterrupt):
        kept(sample, tmp_path, identity={"policy": "a"}, group=2)(requests, guides)
    asked[:] = [0]
    found = kept(sample, tmp_path, identity={"policy": "a"}, group=2)(requests, guides)
    assert asked == [0, 1], "two groups of two were there"
    assert [completion.token_ids[0] for completion in found] == [0, 1, 2, 3, 4]
    asked.clear()
    again = kept(sample, tmp_path, identity={"policy": "a"}, group=2)(requests, guides)
    assert again == found and not asked


def test_nothing_of_another_run_is_taken(tmp_path):
    calls = []

    def sample(requests, settings):
        calls.append(len(requests))
        return [Completion([5, 1], "stop", [0.0, 0.0]) for _ in requests]

    request, guide = Request([3], 8, seed=1), GuidanceSettings(mode="at_most", target=4)
    for identity, asked, guided in (
        ({"policy": "a"}, request, guide),
        ({"policy": "b"}, request, guide),
        ({"policy": "a"}, Request([3], 8, seed=2), guide),
        ({"policy": "a"}, request, GuidanceSettings(mode="at_most", target=5)),
        ({"policy": "a"}, request, None),
    ):
        kept(sample, tmp_path, identity=identity)([asked], [guided])
    assert calls == [1] * 5
    kept(sample, tmp_path, identity={"policy": "a"})([request], [guide])
    assert calls == [1] * 5


def test_a_group_with_failures_is_tried_again(tmp_path):
    answers = iter([Completion([], "error", []), Completion([5, 1], "stop", [0.0, 0.0])])
    remembered = kept(lambda requests, settings: [next(answers)], tmp_path, identity={})
    assert remembered([Request([3], 8)], [None])[0].finish_reason == "error"
    assert remembered([Request([3], 8)], [None])[0].finish_reason == "stop"
    assert remembered([Request([3], 8)], [None])[0].finish_reason == "stop"


def test_a_value_model_trained_further_is_another_one(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    before = lenvm_identity(tmp_path)
    assert before == lenvm_identity(tmp_path)
    weights.write_bytes(b"12")
    assert lenvm_identity(tmp_path) != before
