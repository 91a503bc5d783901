"""Order of service on a real vLLM server behind the proxy: first come, predicted, perfect.

    python -m scripts.bench scheduling_server --rollouts runs/demo/rollouts/heldout \\
        --out runs/scheduling-server --json scheduling-server.json

`vllm serve --scheduling-policy priority` runs the policy on a CPU, `lenvm route` stands before it.
Requests are prompts of the rollout file that write as many tokens as a recorded completion did
(`ignore_eos`), so that every arm serves the same lengths; they arrive by one Poisson trace for all
arms and repeats, at `load` times the rate that the server reaches when all come at once. Arms:

    fcfs        every request says priority 0
    predicted   the proxy says the priority, by the LenVM's prediction at the prompt
    perfect     every request says its own length

Latency runs from when a request was due to its last token. Arms take turns within a repeat, so that
a machine that slows down slows all. `passed`: the mean latency of `predicted` at least half of the
way from fcfs to perfect, its p99 at most 1.1 times that of fcfs. The last line of stdout is one
JSON object.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from scripts.bench import harness
from scripts.bench.harness import show
from scripts.bench.serving import serving

ARMS = ("fcfs", "predicted", "perfect")


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """The server, the trace, the predictor."""

    rollouts: Path
    """Completions whose prompts and lengths are the requests."""
    policy: str = "demo"
    """What the server runs: directory, hub id or demo."""
    lenvm: str = "demo"
    """What the proxy predicts with."""
    requests: int = 200
    """Of a run."""
    load: float = 1.1
    """Arrivals as a share of what the server can serve."""
    slots: int = 8
    """Requests that vLLM runs at a time."""
    repeats: int = 3
    """Runs of every arm."""
    aging: float = 0.0
    """Of the proxy: tokens by which a request comes forward in each second."""
    seed: int = 0
    """Of the requests and the trace."""
    out: Path = Path("runs/scheduling-server")
    """Logs."""


def run(options: Options) -> Iterator[dict[str, Any]]:
    """The figures of the repeats so far."""
    from lenvm_rl.demo.prompts import resolve_policy

    bodies = requests_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        policy = str(resolve_policy(options.policy))
        server, _ = stack.enter_context(serving(vllm(policy, options), options.out / "vllm.log"))
        proxy, _ = stack.enter_context(serving(route(server, options), options.out / "route.log"))
        at_once = np.zeros(len(bodies))
        asyncio.run(trace(proxy, bodies[:20], at_once[:20], policy))  # first steps are slow
        found = asyncio.run(trace(proxy, bodies, at_once, policy))
        rate = options.load * len(bodies) / max(row["latency"] for row in found)
        rng = np.random.default_rng([options.seed, 1])
        due = np.cumsum(rng.exponential(1 / rate, size=len(bodies)))
        runs: list[dict[str, Any]] = []
        for repeat in range(options.repeats):
            for arm in ARMS:
                asked = [body | priority(arm, body) for body in bodies]
                rows = asyncio.run(trace(proxy, asked, due, policy))
                runs.append({"repeat": repeat, "arm": arm, **measures(rows)})
                harness.CONSOLE.print(runs[-1])
            yield {"rate": rate, "runs": runs, **summary(runs)}
    show(
        f"{len(bodies)} requests, {options.slots} slots, load {options.load:g}",
        ("arm", "mean s", "p99 s", "first token s", "tokens/s"),
        [
            (arm, *(f"{np.mean([r[k] for r in runs if r['arm'] == arm]):.2f}" for k in _SHOWN))
            for arm in ARMS
        ],
    )


_SHOWN = ("latency_mean", "latency_p99", "first_token_mean", "throughput")


def requests_of(options: Options) -> list[dict[str, Any]]:
    """Bodies of chat completions that write as many tokens as completions of the file."""
    from lenvm_rl.rollouts import RolloutReader

    rows = [row for row in RolloutReader(options.rollouts).iter_rows() if row.prompt_messages]
    if len(rows) < options.requests:
        raise ValueError(
            f"{options.rollouts} has {len(rows)} completions with messages, fewer than "
            f"--requests {options.requests}."
        )
    rng = np.random.default_rng([options.seed, 0])
    picked = rng.choice(len(rows), size=options.requests, replace=False)
    return [
        {
            "messages": rows[i].prompt_messages,
            "max_tokens": rows[i].length,
            "ignore_eos": True,
            "stream": True,
        }
        for i in picked
    ]


def priority(arm: str, body: Mapping[str, Any]) -> dict[str, int]:
    """What the client says of its turn: smaller goes first."""
    return {"fcfs": {"priority": 0}, "perfect": {"priority": body["max_tokens"]}}.get(arm, {})


def vllm(policy: str, options: Options) -> Any:
    """The command of the server on a port."""
    program = shutil.which("vllm", path=str(Path(sys.executable).parent)) or "vllm"
    words = ["serve", policy, "--scheduling-policy", "priority", "--enforce-eager"]
    words += ["--max-num-seqs", str(options.slots), "--served-model-name", policy]
    return lambda port: [program, *words, "--port", str(port)]


def route(server: str, options: Options) -> Any:
    """The command of the proxy on a port."""
    words = ["-m", "lenvm_rl.cli", "route", "--upstream", server, "--lenvm", options.lenvm]
    words += ["--aging", str(options.aging), "--unit", "1", "--threads", "1"]
    return lambda port: [sys.executable, *words, "--port", str(port)]


async def trace(
    base: str, bodies: Sequence[Mapping[str, Any]], due: np.ndarray, model: str
) -> list[dict[str, float]]:
    """Latency, time to the first token and tokens of every request, sent when it is due.

    Raises:
        ValueError: a request that is not answered with what it asked for.
    """
    url = base + "/v1/chat/completions"

    async def one(session: aiohttp.ClientSession, body: Mapping[str, Any], at: float) -> Any:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        first = None
        async with session.post(url, json={"model": model, **body}) as answer:
            async for line in answer.content:
                if first is None and line.startswith(b"data: ") and _text(line):
                    first = time.perf_counter() - at
            if answer.status != 200 or first is None:
                raise ValueError(f"{url} answered {answer.status} without a token: see its log.")
        return {
            "latency": time.perf_counter() - at,
            "end": time.perf_counter() - started,
            "first_token": first,
            "tokens": body["max_tokens"],
        }

    started = time.perf_counter()
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        asked = zip(bodies, due, strict=True)
        return await asyncio.gather(*(one(session, body, started + t) for body, t in asked))


def _text(line: bytes) -> bool:
    """Whether an event of a stream holds text."""
    data = line[len(b"data: ") :].strip()
    if data == b"[DONE]":
        return False
    choices = json.loads(data).get("choices") or [{}]
    return bool((choices[0].get("delta") or {}).get("content"))


def measures(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of one run, in seconds."""
    latency, first = (np.array([row[k] for row in rows]) for k in ("latency", "first_token"))
    return {
        "latency_mean": float(latency.mean()),
        "latency_p99": float(np.quantile(latency, 0.99)),
        "first_token_mean": float(first.mean()),
        "first_token_p99": float(np.quantile(first, 0.99)),
        "throughput": float(sum(row["tokens"] for row in rows) / max(row["end"] for row in rows)),
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of the way from fcfs to perfect, and the tail beside fcfs, over the repeats."""
    shares, tails = [], []
    for repeat in sorted({row["repeat"] for row in runs}):
        arm = {row["arm"]: row for row in runs if row["repeat"] == repeat}
        mean = {name: row["latency_mean"] for name, row in arm.items()}
        gain = mean["fcfs"] - mean["perfect"]
        shares.append((mean["fcfs"] - mean["predicted"]) / gain if gain > 0 else float("nan"))
        tails.append(arm["predicted"]["latency_p99"] / arm["fcfs"]["latency_p99"])
    share, tail = float(np.mean(shares)), float(np.mean(tails))
    each = {"shares": shares, "tails": tails}
    return {"share": share, "tail": tail, **each, "passed": share >= 0.5 and tail <= 1.1}
