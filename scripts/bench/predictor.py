"""A predictor over HTTP and the proxy before a server: requests a second, latency, overhead.

    python -m scripts.bench predictor --out runs/predictor

`lenvm predictor` runs as its users run it, with the LenVM that ships with the package, and with a
random one of about 40 million parameters. Each is asked as fast as it answers by `clients` at
once, then at an offered rate with Poisson arrivals; latency counts from when a request was due, so
that a server that falls behind cannot hide it. Then `lenvm route` stands before a server that
answers at once, beside asking that server directly, at the same arrivals: the difference of the
two is what the proxy costs, without a prediction and with one by a predictor that answers at once.

All processes share the machine with whoever asks: what the client costs is in the figures. What a
process does in a second of CPU time is what a loaded machine changes least.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from scripts.bench import harness
from scripts.bench.harness import show
from scripts.bench.serving import serving

AIM_RATE, AIM_P99 = 300.0, 50.0
AIM_OVERHEAD = 2.0
STUB_ANSWER = json.dumps({"mean": 40.0, "choices": [{"message": {"content": "42"}}]}).encode()
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """How hard, and how long."""

    parts: tuple[str, ...] = ("demo", "large", "proxy")
    """What is measured."""
    seconds: float = 20.0
    """Time of each measurement."""
    clients: int = 32
    """Requests in flight where the predictor is asked as fast as it answers."""
    rate: float = AIM_RATE
    """Offered requests a second with the LenVM that ships with the package."""
    large_rate: float = 20.0
    """The same with the one of 40 million parameters."""
    large_tokens: int = 128
    """Tokens of its prompts."""
    proxy_rate: float = 50.0
    """Offered requests a second through the proxy."""
    seed: int = 0
    """Of prompts and arrivals."""
    out: Path = Path("runs/predictor")
    """The random LenVM, and logs."""
    quick: bool = False
    """Tiny sizes, to see that everything runs."""


def run(options: Options) -> dict[str, Any]:
    """Predictors, then the proxy."""
    if options.quick:
        options = replace(options, seconds=2.0, clients=4, rate=20.0, large_rate=5.0, proxy_rate=10)
    options.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    if "demo" in options.parts:
        figures["demo"] = predictor(options, "demo", 1, options.rate, demo_bodies(options.seed))
    if "large" in options.parts:
        bodies = random_bodies(options.large_tokens, options.seed)
        lenvm = str(large_lenvm(options))
        figures["large"] = predictor(options, lenvm, 2, options.large_rate, bodies)
    if "proxy" in options.parts:
        figures["proxy"] = overhead(options)
    view(figures)
    bars = []
    if "demo" in figures:
        bars += [figures["demo"]["most_per_second"] >= AIM_RATE]
        bars += [figures["demo"]["p99_ms"] <= AIM_P99]
    if "proxy" in figures:
        bars += [figures["proxy"]["predicted"]["added_p99_ms"] <= AIM_OVERHEAD]
    return {**figures, "passed": all(bars)}


def view(figures: Mapping[str, Any]) -> None:
    """What was measured, as tables."""
    for name in ("demo", "large"):
        if name in figures:
            numbers = [(key, value) for key, value in figures[name].items()]
            rows = [[k, f"{v:.1f}" if isinstance(v, float) else str(v)] for k, v in numbers]
            show(f"predictor, {name}", ("", ""), rows)
    if "proxy" in figures:
        keys = ("p50_ms", "p99_ms", "added_p50_ms", "added_p99_ms", "cpu_ms")
        rows = [[k, *(f"{f[key]:.2f}" for key in keys)] for k, f in figures["proxy"].items()]
        show("proxy before a server that answers at once", ("", *keys), rows)


def demo_bodies(seed: int) -> list[dict[str, Any]]:
    """Problems of the demo, as chats."""
    from lenvm_rl.demo.prompts import demo_prompts

    return [{"messages": p.messages, "max_tokens": 512} for p in demo_prompts(200, seed=seed)]


def random_bodies(tokens: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of so many random tokens."""
    draw = random.Random(seed)
    return [{"token_ids": [draw.randrange(2, 30) for _ in range(tokens)]} for _ in range(200)]


def large_lenvm(options: Options) -> Path:
    """A random LenVM of about 40 million parameters, on a Qwen2 trunk; made once."""
    import torch

    from lenvm_rl.demo import policy_path
    from lenvm_rl.model import from_scratch, load_tokenizer, save_checkpoint

    width, layers = (64, 2) if options.quick else (512, 12)
    path = options.out / f"random-{width}-{layers}"
    if not path.exists():
        torch.manual_seed(options.seed)
        tokenizer = load_tokenizer(policy_path())
        model = from_scratch(tokenizer, hidden_size=width, num_layers=layers, gamma=0.99)
        save_checkpoint(model, tokenizer, path)
    return path


def predictor(
    options: Options, lenvm: str, threads: int, rate: float, bodies: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Figures of `lenvm predictor`."""
    patient = ("--patience", "60")  # how much it answers is asked, not what it refuses
    command = lenvm_command("predictor", "--lenvm", lenvm, "--threads", str(threads), *patient)
    log = options.out / f"{Path(lenvm).name}.log"
    with serving(command, log, {"OMP_NUM_THREADS": str(threads)}) as (base, process):
        url = base + "/predict"
        asyncio.run(closed(url, bodies, options.clients, 3.0))  # first passes are slow
        before = cpu_seconds(process.pid)
        count, seconds = asyncio.run(closed(url, bodies, options.clients, options.seconds))
        busy = cpu_seconds(process.pid) - before
        before = cpu_seconds(process.pid)
        found = asyncio.run(offered({url: bodies}, rate, options.seconds, options.seed))[url]
        cpu = cpu_seconds(process.pid) - before
    return {
        "prompt_tokens": str(len(bodies[0].get("token_ids", ())) or "10 to 20"),
        "threads": threads,
        "most_per_second": count / seconds,
        "most_per_cpu_second": count / busy,
        "rate": rate,
        **quantiles(found),
        "cpu_ms": 1e3 * cpu / len(found),
        "refused": sum(seconds is None for seconds in found),
    }


def overhead(options: Options) -> dict[str, Any]:
    """Figures of `lenvm route` before a server that answers at once, itself the predictor too."""
    bodies = [{**body, "model": "demo"} for body in demo_bodies(options.seed)]
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        server, _ = stack.enter_context(serving(stub_command, options.out / "server.log"))
        command = lenvm_command("route", "--upstream", server, "--predictor", server)
        proxy, process = stack.enter_context(serving(command, options.out / "proxy.log"))
        for name, path in (("plain", "/v1/embeddings"), ("predicted", CHAT)):
            direct, through = server + path, proxy + path
            asked = {direct: bodies, through: bodies}
            asyncio.run(offered(asked, options.proxy_rate, 2.0, options.seed + 1))  # warm
            before = cpu_seconds(process.pid)
            found = asyncio.run(offered(asked, options.proxy_rate, options.seconds, options.seed))
            cpu = cpu_seconds(process.pid) - before
            beside, own = quantiles(found[direct]), quantiles(found[through])
            figures[name] = {
                **own,
                "cpu_ms": 1e3 * cpu / len(found[through]),
                "direct": beside,
                "added_p50_ms": own["p50_ms"] - beside["p50_ms"],
                "added_p99_ms": own["p99_ms"] - beside["p99_ms"],
            }
    return figures


def quantiles(found: Sequence[float | None]) -> dict[str, float]:
    """Latencies in ms of the requests that were answered."""
    answered = np.array([seconds for seconds in found if seconds is not None])
    return {f"p{q}_ms": float(1e3 * np.quantile(answered, q / 100)) for q in (50, 90, 99)}


async def closed(
    url: str, bodies: Sequence[Any], clients: int, seconds: float
) -> tuple[int, float]:
    """Answers to so many clients that ask again as soon as they are answered, and the time that
    they took in seconds."""
    counted, until = 0, time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal counted
        while time.perf_counter() < until:
            async with session.post(url, json=bodies[(counted + number) % len(bodies)]) as answer:
                await answer.read()
                counted += answer.status == 200

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.perf_counter()
        await asyncio.gather(*(client(session, number) for number in range(clients)))
        return counted, time.perf_counter() - started


async def offered(
    asked: Mapping[str, Sequence[Any]], rate: float, seconds: float, seed: int
) -> dict[str, list[float | None]]:
    """Seconds from when each request was due to its whole answer, None where it was refused.

    Args:
        asked: bodies for each URL, all of them at the same time.
        rate: requests a second of each, Poisson.
    """
    found: dict[str, list[float | None]] = {url: [] for url in asked}

    async def one(session: aiohttp.ClientSession, url: str, body: Any, due: float) -> None:
        async with session.post(url, json=body) as answer:
            await answer.read()
            taken = time.perf_counter() - due
            found[url].append(taken if answer.status == 200 else None)

    async def arrivals(session: aiohttp.ClientSession, url: str, draw: random.Random) -> None:
        started = due = time.perf_counter()
        tasks = []
        while (due := due + draw.expovariate(rate)) < started + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(session, url, draw.choice(asked[url]), due)))
        await asyncio.gather(*tasks)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        draws = [random.Random(f"{seed} {number}") for number in range(len(asked))]
        await asyncio.gather(*map(partial(arrivals, session), asked, draws))
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def lenvm_command(*words: str) -> Callable[[int], list[str]]:
    """`lenvm WORDS` on a port."""
    return lambda port: [sys.executable, "-m", "lenvm_rl.cli", *words, "--port", str(port)]


def stub_command(port: int) -> list[str]:
    """A server that answers at once, see `stub`."""
    words = ["-m", "uvicorn", "scripts.bench.predictor:stub", "--no-access-log", "--port"]
    return [sys.executable, *words, str(port)]


async def stub(scope: Any, receive: Any, send: Any) -> None:
    """An app that gives any request the same answer, that of a server and a predictor in one."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": STUB_ANSWER})
