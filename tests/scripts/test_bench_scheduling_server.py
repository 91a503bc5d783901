"""The real-server benchmark: its trace against a server that counts, its figures by hand."""

import asyncio
import json

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lenvm_rl.rollouts import Rollout, RolloutWriter
from scripts.bench import scheduling_server as bench


def rollouts(path, messages=({"role": "user", "content": "2 + 2"},)):
    with RolloutWriter(path, tokenizer_sha="x", vocab_size=9) as out:
        out.append(
            Rollout(
                prompt_id=f"p{i}",
                sample_id=0,
                prompt_ids=[2],
                response_ids=[3] * i + [1],
                finish_reason="stop",
                prompt_messages=list(messages) or None,
            )
            for i in range(6)
        )
    return path


def test_requests_write_what_was_recorded_and_say_their_turn(tmp_path):
    options = bench.Options(rollouts=rollouts(tmp_path / "r"), requests=6)
    bodies = bench.requests_of(options)
    assert sorted(body["max_tokens"] for body in bodies) == [1, 2, 3, 4, 5, 6]
    assert all(body["ignore_eos"] and body["stream"] for body in bodies)
    said = {arm: bench.priority(arm, {"max_tokens": 7}) for arm in bench.ARMS}
    assert said == {"fcfs": {"priority": 0}, "predicted": {}, "perfect": {"priority": 7}}
    with pytest.raises(ValueError, match="0 completions with messages, fewer than --requests"):
        bench.requests_of(bench.Options(rollouts=rollouts(tmp_path / "bare", ()), requests=3))


async def traced(status, due):
    seen = []

    async def answer(request):
        body = await request.json()
        seen.append(body["max_tokens"])
        if status != 200:
            return web.Response(status=status)
        response = web.StreamResponse()
        await response.prepare(request)
        role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
        token = {"choices": [{"delta": {"content": "4"}}]}
        for pause, event in ((0.0, role), (0.1, token), (0.1, token)):
            await asyncio.sleep(pause)
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as server:
        bodies = [{"max_tokens": n} for n in range(1, len(due) + 1)]
        base = str(server.make_url("")).rstrip("/")
        return await bench.trace(base, bodies, np.array(due), "m"), seen


def test_a_trace_is_sent_when_it_is_due_and_timed_from_then():
    rows, seen = asyncio.run(traced(200, [0.3, 0.0, 0.6]))
    assert seen == [2, 1, 3]
    for row, due in zip(rows, [0.3, 0.0, 0.6], strict=True):
        assert 0.09 < row["first_token"] < row["latency"] and row["latency"] > 0.19
        assert row["end"] == pytest.approx(due + row["latency"], abs=0.05)
    with pytest.raises(ValueError, match="answered 503 without a token"):
        asyncio.run(traced(503, [0.0]))


def test_figures_by_hand():
    rows = [
        {"latency": 1.0, "first_token": 0.5, "tokens": 10, "end": 1.0},
        {"latency": 3.0, "first_token": 1.5, "tokens": 30, "end": 4.0},
    ]
    found = bench.measures(rows)
    assert found["latency_mean"] == 2.0 and found["first_token_mean"] == 1.0
    assert found["throughput"] == 10.0

    def runs(predicted_mean, predicted_tail):
        values = {"fcfs": (10.0, 20.0), "predicted": (predicted_mean, predicted_tail)}
        values["perfect"] = (6.0, 30.0)
        return [
            {"repeat": 0, "arm": arm, "latency_mean": mean, "latency_p99": tail}
            for arm, (mean, tail) in values.items()
        ]

    good = bench.summary(runs(7.0, 21.0))
    assert good["share"] == 0.75 and good["tail"] == 1.05 and good["passed"]
    assert not bench.summary(runs(9.0, 21.0))["passed"]
    assert not bench.summary(runs(7.0, 23.0))["passed"]
