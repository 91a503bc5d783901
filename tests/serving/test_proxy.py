"""The proxy: hints arrive, answers pass byte for byte, and servers may misbehave as they like."""

import asyncio
import contextlib
import json
import re
import threading
import time

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lenvm_rl.serving.predictor import PredictorHere, predictor_app
from lenvm_rl.serving.proxy import PredictorByUrl, Proxy
from lenvm_rl.serving.remaining import about
from lenvm_rl.serving.settings import RouteSettings
from tests.serving.live import free_port, raw_server, served
from tests.serving.test_predictor import point, tiny_predictor

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "w40 w44"}]}
EVENTS = [
    b'data: {"choices": [{"index": 0, "delta": {"content": "w%d "}}]}\n\n' % n for n in range(2, 12)
]


class Upstream:
    """An OpenAI-compatible server that remembers what it was sent."""

    def __init__(self, pause=0.0):
        self.seen, self.gone, self.pause = [], threading.Event(), pause
        everything = ["GET", "POST", "DELETE"]
        self.app = Starlette(routes=[Route("/{path:path}", self.answer, methods=everything)])

    async def answer(self, request):
        body = await request.body()
        self.seen.append((request, body))
        if b'"stream": true' in body or b'"stream":true' in body:
            return StreamingResponse(self.events(), media_type="text/event-stream")
        if request.url.path.endswith("odd"):
            return Response(b"\x00\xff", 418, {"x-own": "a", "content-type": "odd/odd"})
        return JSONResponse({"path": request.url.path, "query": request.url.query})

    async def events(self):
        try:
            for event in EVENTS:
                yield event[:20]  # events come in any pieces
                await asyncio.sleep(self.pause)
                yield event[20:]
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.gone.set()
            raise

    @property
    def body(self):
        return json.loads(self.seen[-1][1])

    @property
    def headers(self):
        return self.seen[-1][0].headers


@contextlib.contextmanager
def proxied(*servers, predict="here", read=None, **settings):
    """Base URL of a proxy before servers."""
    if predict == "here":
        predict = PredictorHere(tiny_predictor(*([read] if read else [])))
    with served(Proxy(servers, predict, RouteSettings(**settings))) as url:
        yield url


@contextlib.contextmanager
def before_one(upstream=None, **settings):
    upstream = upstream or Upstream()
    with served(upstream.app) as server, proxied(server, **settings) as url:
        yield upstream, url


def post(url, body, path="/v1/chat/completions", **more):
    return httpx.post(url + path, json=body, timeout=20, **more)


def counted(url, name):
    found = re.findall(rf"^{name}{{(.*)}} (.*)$", httpx.get(url + "/metrics").text, re.MULTILINE)
    return {re.sub(r'(\w+)="([^"]*)"', r"\2", labels): float(value) for labels, value in found}


def test_hints_arrive_and_the_rest_is_the_clients():
    with before_one(hints=("vllm", "production-stack", "dynamo", "llm-d"), unit=1.0) as (up, url):
        answer = post(
            url, {**CHAT, "logit_bias": {"3": -1.5}}, headers={"authorization": "Bearer x"}
        )
        assert answer.json() == {"path": "/v1/chat/completions", "query": ""}
        assert up.body["priority"] == 84  # 40 + 44, see `uniform`
        assert up.body["nvext"]["agent_hints"]["osl"] == 84
        assert up.body["logit_bias"] == {"3": -1.5} and up.body["messages"] == CHAT["messages"]
        assert up.headers["x-request-priority"] == "84"
        assert up.headers["x-osl-bucket"] == "SHORT"
        assert up.headers["authorization"] == "Bearer x"
        assert answer.headers["x-predicted-osl"] == "84"
        assert counted(url, "lenvm_route_hints_total") == {"hinted": 1}
        post(url, {"model": "tiny", "prompt": [7, 8], "max_tokens": 4}, "/v1/completions")
        assert up.body["priority"] == 4  # no response is longer than its limit


def test_everything_else_passes_byte_for_byte():
    with before_one() as (up, url):
        odd = httpx.get(url + "/v1/odd?a=b%20c&d")
        assert (odd.status_code, odd.content, odd.headers["x-own"]) == (418, b"\x00\xff", "a")
        assert up.seen[-1][0].url.query == "a=b%20c&d"
        body = b'{"input" :  "w4", "big": 1e400}'
        httpx.post(url + "/v1/embeddings", content=body)
        assert up.seen[-1][1] == body
        httpx.delete(url + "/v1/files/3")
        assert up.seen[-1][0].method == "DELETE"
        garbage = b'{"messages": [}'  # the server says what is wrong with it
        httpx.post(url + "/v1/chat/completions", content=garbage)
        assert up.seen[-1][1] == garbage
        assert counted(url, "lenvm_route_hints_total") == {"unreadable": 1}


def test_a_stream_passes_byte_for_byte_as_it_comes():
    with before_one(Upstream(pause=0.05)) as (up, url):
        started, came = time.monotonic(), []
        with httpx.stream("POST", url + "/v1/chat/completions", json={**CHAT, "stream": True}) as s:
            assert s.headers["content-type"].startswith("text/event-stream")
            for chunk in s.iter_raw():
                came.append((time.monotonic() - started, chunk))
        assert b"".join(chunk for _, chunk in came) == b"".join([*EVENTS, b"data: [DONE]\n\n"])
        assert came[0][0] < came[-1][0] - 0.2  # not held back


@pytest.mark.parametrize("read", [None, point])
def test_the_remaining_length_stands_between_events(read):
    ask = {"x-lenvm-remaining": "4"}
    with before_one(Upstream(pause=0.03), read=read) as (up, url):
        answer = post(url, {**CHAT, "stream": True}, headers=ask)
        assert "x-lenvm-remaining" not in up.headers
    plain = re.sub(rb": lenvm [^\n]*\n\n", b"", answer.content)
    assert plain == b"".join([*EVENTS, b"data: [DONE]\n\n"])
    said = [json.loads(line) for line in re.findall(r"^: lenvm (.*)$", answer.text, re.MULTILINE)]
    assert len(said) >= 2
    for one in said:  # n events have said w2 .. w(n + 1)
        n = one["generated"]
        assert one["remaining"] == about(84 + sum(range(2, n + 2)))
    assert [one["generated"] for one in said[:2]] == [0, 4]
    if read is None:
        assert said[0] == {
            **{"generated": 0, "remaining": 84, "low": 17, "high": 150},
            "text": "about 84 more tokens (17 to 150)",
        }
    else:
        assert said[0]["low"] is None and said[0]["text"] == "about 84 more tokens"


def test_a_client_that_hangs_up_ends_the_servers_work():
    with before_one(Upstream(pause=0.2)) as (up, url):
        with httpx.stream("POST", url + "/v1/chat/completions", json={**CHAT, "stream": True}) as s:
            next(s.iter_raw())
        assert up.gone.wait(5)
        states = httpx.get(url + "/health").json()["upstreams"]
        assert [state["in_flight"] for state in states] == [0]


class Broken:
    """A predictor that cannot answer."""

    def __init__(self, error=None):
        self.error = error

    async def __call__(self, question):
        if self.error is None:
            await asyncio.sleep(30)
        raise self.error or AssertionError

    async def close(self):
        pass


@pytest.mark.parametrize(
    ("predict", "outcome"),
    [
        (Broken, "late"),
        (lambda: Broken(RuntimeError("boom")), "failed"),
        (lambda: Broken(ValueError("too long")), "refused"),
        (lambda: PredictorByUrl(f"http://127.0.0.1:{free_port()}"), "failed"),
        (lambda: PredictorHere(tiny_predictor()), "refused"),
    ],
)
def test_a_prediction_that_fails_costs_the_hint_alone(predict, outcome):
    body = {**CHAT, "model": "of another policy"}
    with before_one(predict=predict(), predict_seconds=0.1) as (up, url):
        answer = post(url, body)
        assert answer.status_code == 200 and "x-predicted-osl" not in answer.headers
        assert up.body == body
        assert counted(url, "lenvm_route_hints_total") == {outcome: 1}
    with before_one(predict=predict(), predict_seconds=0.1, assumed_length=160) as (up, url):
        assert post(url, body).status_code == 200
        assert up.body == {**body, "priority": 10}


def test_a_quantile_that_the_predictor_lacks_costs_the_hint():
    with before_one(read=point, quantile="p90") as (up, url):
        assert post(url, CHAT).status_code == 200 and up.body == CHAT
        assert counted(url, "lenvm_route_hints_total") == {"refused": 1}


def test_a_predictor_may_be_elsewhere():
    with (
        served(predictor_app(tiny_predictor())) as there,
        before_one(predict=PredictorByUrl(there), unit=1.0, quantile="p90") as (up, url),
    ):
        post(url, CHAT)
        assert up.body["priority"] == 151  # 1.8 x 84
        post(url, {**CHAT, "model": "other"})
        assert "priority" not in up.body
        assert counted(url, "lenvm_route_hints_total") == {"hinted": 1, "refused": 1}


def test_overriding_takes_away_what_would_win_over_the_hint():
    own = {"x-vllm-priority": "-9", "x-request-priority": "-9"}
    with before_one(override=True, unit=1.0) as (up, url):
        post(url, {**CHAT, "priority": -9}, headers=own)
        assert up.body["priority"] == 84 and "x-vllm-priority" not in up.headers
        assert up.headers["x-request-priority"] == "-9"  # of a system that was not named


def test_servers_share_by_predicted_tokens_and_a_missing_one_is_passed_over():
    one, two = Upstream(pause=0.1), Upstream(pause=0.1)
    gone = f"http://127.0.0.1:{free_port()}"
    with served(one.app) as first, served(two.app) as second, proxied(first, gone, second) as url:
        long = {**CHAT, "messages": [{"role": "user", "content": "w47 w47 w47 w47"}]}
        short = {**CHAT, "messages": [{"role": "user", "content": "w2"}]}

        async def run():
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                path, tasks = "/v1/chat/completions", []
                for body in [long, *[short] * 6]:
                    tasks.append(client.post(path, json={**body, "stream": True}))
                    tasks[-1] = asyncio.create_task(tasks[-1])
                    await asyncio.sleep(0.05)
                return await asyncio.gather(*tasks)

        answers = asyncio.run(run())
        assert [a.status_code for a in answers] == [200] * 7
        assert sorted([len(one.seen), len(two.seen)]) == [1, 6]
        for _ in range(10):
            assert httpx.get(url + "/v1/models").status_code == 200
        states = {s["url"]: s["reachable"] for s in httpx.get(url + "/health").json()["upstreams"]}
        assert states[first] and states[second]


def reset(connection, head, body):
    """Hang up without a word."""


def no_http(connection, head, body):
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


def half_headers(connection, head, body):
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-len")


@pytest.mark.parametrize("behave", [reset, no_http, half_headers])
def test_a_server_that_gives_no_answer_is_502_or_asked_elsewhere(behave):
    with raw_server(behave) as bad, proxied(bad) as url:
        answer = post(url, CHAT)
        assert answer.status_code == 502
        assert "no server answered" in answer.json()["error"]["message"]
        assert bad in answer.json()["error"]["message"]
        up = Upstream()
        with served(up.app) as good, proxied(bad, good) as both:
            assert [post(both, CHAT).status_code for _ in range(6)] == [200] * 6
            assert len(up.seen) == 6


def test_no_server_at_all_is_502():
    with proxied(f"http://127.0.0.1:{free_port()}") as url:
        answer = post(url, CHAT)
        assert answer.status_code == 502 and "is not there" in answer.text
        assert httpx.get(url + "/health").json()["upstreams"][0]["reachable"] is False


def test_a_server_that_closes_idle_connections_is_asked_again():
    times = []

    def once(connection, head, body):
        times.append(1)
        if len(times) != 2:  # the second finds its connection closed, as after a pause
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with raw_server(once) as server, proxied(server) as url:
        assert [post(url, CHAT).text for _ in range(3)] == ["ok"] * 3


def dies_in_a_stream(connection, head, body):
    start = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    connection.sendall(start + b"%x\r\n%s\r\n" % (len(EVENTS[0]) + 9, EVENTS[0] + EVENTS[1][:9]))


def dies_in_a_body(connection, head, body):
    connection.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"choices": [')


def test_a_stream_that_breaks_off_ends_with_an_error_event():
    with raw_server(dies_in_a_stream) as server, proxied(server) as url:
        answer = post(url, {**CHAT, "stream": True})
        assert answer.content.startswith(EVENTS[0])  # no whole event is lost
        last = answer.content[len(EVENTS[0]) :]
        said = json.loads(last.strip().removeprefix(b"data: "))
        assert last.endswith(b"\n\n") and said["error"]["code"] == 502
        assert "broke off in mid-stream" in said["error"]["message"]
        assert b"[DONE]" not in answer.content
        assert counted(url, "lenvm_route_broken_total") == {server: 1}


def test_the_openai_client_raises_where_a_stream_breaks_off():
    openai = pytest.importorskip("openai")
    with raw_server(dies_in_a_stream) as server, proxied(server) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key="x", max_retries=0)
        stream = client.chat.completions.create(**CHAT, stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            list(stream)


def test_an_answer_that_breaks_off_is_no_whole_answer():
    with raw_server(dies_in_a_body) as server, proxied(server) as url:
        with pytest.raises(httpx.RemoteProtocolError):
            post(url, CHAT)
        assert httpx.get(url + "/health").status_code == 200


def test_a_path_can_name_no_other_server():
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "@host/x", "raw_path": b"@host/x"}
    proxy = Proxy(["http://127.0.0.1:1"], None, RouteSettings())
    asyncio.run(proxy({**scope, "headers": [], "query_string": b""}, None, send))
    assert sent[0]["status"] == 400


def test_a_body_that_is_too_large_is_413():
    with before_one(largest_body=1000) as (up, url):
        answer = post(url, {**CHAT, "user": "x" * 2000})
        assert answer.status_code == 413 and "1,000 bytes" in answer.text
        assert up.seen == [] and post(url, CHAT).status_code == 200
