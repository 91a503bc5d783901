"""`lenvm predictor` and `lenvm route`: what they refuse, and one that runs in front of a server."""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from tests.cli.command_line import invoke
from tests.serving.live import served
from tests.serving.test_proxy import Upstream

UPSTREAM = ("--upstream", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("route", *UPSTREAM), "--predictor URL, or --lenvm"),
        (("route", *UPSTREAM, "--predictor", "http://a", "--lenvm", "demo"), "--predictor URL, or"),
        (("route", "--upstream", "a:8000", "--predictor", "http://a"), "'a:8000' is no URL"),
        (("route", *UPSTREAM, "--predictor", "http://a", "--hints", "vllm,x"), "got x"),
        (("route", *UPSTREAM, "--predictor", "http://a", "--aging", "-1"), "--aging"),
        (("route", *UPSTREAM, "--lenvm", "demo", "--quantile", "p90"), "no quantiles"),
        (("predictor", "--lenvm", "demo", "--queue", "0"), "--queue must be at least 1"),
        (("predictor", "--lenvm", "nowhere/at-all"), "nowhere/at-all"),
    ],
)
def test_mistakes_are_sentences(words, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        invoke(*words)


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}"):
            invoke("predictor", "--lenvm", "demo", "--port", port)


@pytest.mark.slow
def test_a_proxy_with_the_shipped_lenvm_before_a_server(tmp_path):
    upstream = Upstream()
    with served(upstream.app) as server:
        words = ["route", "--upstream", server, "--lenvm", "demo", "--port", "0", "--threads", "1"]
        words += ["--unit", "1", "--predict-seconds", "20"]
        process = subprocess.Popen(
            [sys.executable, "-m", "lenvm_rl.cli", *words, "--json", str(tmp_path / "line.json")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )
        assert process.stdout is not None
        url = process.stdout.readline().split("/v1")[0]
        body = {"model": "demo", "messages": [{"role": "user", "content": "12 + 7 - 3 = ?"}]}
        with httpx.Client(transport=httpx.HTTPTransport(retries=50)) as client:
            answer = client.post(url + "/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200 and 5 < upstream.body["priority"] < 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert json.loads((tmp_path / "line.json").read_text()) == {"stopped": url}
