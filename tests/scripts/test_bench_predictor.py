"""The predictor benchmark: its load is what it says, and all of it runs in small."""

import asyncio
import json
import os
import time

import pytest

from scripts.bench import predictor
from scripts.bench.harness import main
from tests.serving.live import served


def test_load_is_offered_at_its_rate_and_late_answers_count_from_when_they_were_due():
    async def slow(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/slow":
            await asyncio.sleep(0.3)
        await predictor.stub(scope, receive, send)

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            for state in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{state}.complete"})
        else:
            await slow(scope, receive, send)

    with served(app) as base:
        asked = {base + "/fast": [{}], base + "/slow": [{}]}
        found = asyncio.run(predictor.offered(asked, 40.0, 2.0, seed=0))
        fast, late = (predictor.quantiles(found[url]) for url in asked)
        assert all(40 < len(times) < 120 for times in found.values())  # 80 on average
        assert late["p50_ms"] > 300 > fast["p50_ms"]
        count, seconds = asyncio.run(predictor.closed(base + "/slow", [{}], 8, 1.0))
        assert 10 < count / seconds < 8 / 0.3 + 1


def test_cpu_time_is_the_processes_own():
    before = predictor.cpu_seconds(os.getpid())
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    assert 0.25 < predictor.cpu_seconds(os.getpid()) - before < 1.0


@pytest.mark.slow
def test_it_runs(tmp_path, capsys):
    status = main(["predictor", "--quick", "--out", str(tmp_path / "out")])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert status == (not figures["passed"])
    for name in ("demo", "large"):
        assert figures[name]["most_per_second"] > 0 and figures[name]["refused"] == 0
        assert 0 < figures[name]["p50_ms"] <= figures[name]["p99_ms"]
    assert figures["proxy"]["predicted"]["cpu_ms"] > figures["proxy"]["plain"]["cpu_ms"] > 0
