"""Does a guided server live through a long mixed load of 64 streams, some cancelled or malformed?

    python -m scripts.bench endurance                    ten minutes, the shipped policy
    python -m scripts.bench endurance --minutes 1 --lenvm DIR

Clients send streaming requests of all modes, hang up on some, and send malformed ones. Measured:
requests served and refused, failures (none allowed), tokens/s, the memory of all server processes
over time, slots of the LenVM's pool that are still taken when all is quiet (none allowed), whether
greedy unguided requests return the same tokens before and after the load, and how many do amid it.
The last line of stdout is one JSON object; exit status 1 when a bar is missed.

Memory counts as flat when its slope over the last two thirds of the run, by least squares, is below
the bar; it is given for each process too. The first third is for warming up: keys and values of the
policy and of the LenVM are reserved at the start, but memory becomes resident when a block or a
column is first written, so it rises towards `reserved_mib` (of both) while longer and more requests
than before come by.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import operator
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from lenvm_rl.demo.prompts import demo_prompts, resolve_policy
from lenvm_rl.model import load_tokenizer
from lenvm_rl.sampling.transformers.to_file import encode_prompt
from lenvm_rl.vllm.options import GuidanceOptions
from lenvm_rl.vllm.serve import serve_command
from scripts.bench.exactness import random_lenvm

CONSOLE = Console(stderr=True)
GUIDED: list[dict[str, Any] | None] = [
    None,
    {"lenvm_mode": "tilt", "lenvm_beta": -4.0},
    {"lenvm_mode": "scale", "lenvm_scale": 0.7},
    {"lenvm_mode": "equal", "lenvm_target": 60},
    {"lenvm_mode": "equal_soft", "lenvm_target": 50},
    {"lenvm_mode": "at_most", "lenvm_target": 40},
    {"lenvm_mode": "at_least", "lenvm_target": 40, "lenvm_top_k": 8},
]
MALFORMED: list[dict[str, Any]] = [
    {"lenvm_mode": "sideways"},
    {"lenvm_mode": "equal"},
    {"lenvm_mode": "equal", "lenvm_target": -1},
    {"lenvm_mode": "tilt", "lenvm_beta": "much"},
    {"lenvm_wish": 1},
]
GROWTH = 8.0  # MiB per minute of all processes together that still counts as flat
_POLICY_CACHE = 256 << 20  # bytes of the policy's keys and values


class Load:
    """What the clients do, and what came of it."""

    def __init__(self, base: str, model: str, prompts: list[list[int]], seed: int):
        self.client = httpx.AsyncClient(
            base_url=base, timeout=120, limits=httpx.Limits(max_connections=None)
        )
        self.model, self.prompts = model, prompts
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def body(self, args: dict[str, Any] | None, **fields: Any) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": self.random.choice(self.prompts),
            "max_tokens": 160,
            "temperature": 1.0,
            "vllm_xargs": args,
            **fields,
        }

    async def client_loop(self, until: float) -> None:
        """One client: a request after the other, one in ten malformed, one in seven cancelled."""
        while time.monotonic() < until and len(self.failures) < 20:
            draw = self.random.random()
            try:
                if draw < 0.1:
                    await self.malformed()
                else:
                    await self.stream(self.random.choice(GUIDED), cancel=draw < 0.25)
            except httpx.HTTPError as error:
                self.failures.append(f"{type(error).__name__}: {error}")

    async def malformed(self) -> None:
        answer = await self.client.post(
            "/v1/completions", json=self.body(self.random.choice(MALFORMED))
        )
        self.counts["refused"] += 1
        if answer.status_code != 400:
            self.failures.append(f"malformed request got {answer.status_code}: {answer.text[:200]}")

    async def stream(self, args: dict[str, Any] | None, *, cancel: bool) -> None:
        body = self.body(args, stream=True, stream_options={"include_usage": True})
        patience = self.random.randint(1, 20)
        async with self.client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                self.failures.append(f"{args} got {answer.status_code}")
                return
            used, lines = 0, 0
            async for line in answer.aiter_lines():
                lines += bool(line)
                if cancel and lines > patience:
                    self.counts["cancelled"] += 1
                    return
                if line.startswith("data: {"):
                    used = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", used)
        self.counts["served"] += 1
        self.counts["tokens"] += used
        self._check_length(args or {}, used)

    def _check_length(self, args: dict[str, Any], used: int) -> None:
        mode, target = args.get("lenvm_mode"), args.get("lenvm_target", 0)
        if (mode == "at_most" and used > target + 1) or (mode == "at_least" and used < target):
            self.failures.append(f"{args} returned {used} tokens")

    async def greedy_amid(self, until: float, alone: list[str]) -> None:
        """Unguided greedy requests beside the load, against what they return `alone`."""
        while time.monotonic() < until and len(self.failures) < 20:
            try:
                texts = await self.greedy()
            except httpx.HTTPError as error:
                self.failures.append(f"greedy: {type(error).__name__}: {error}")
                continue
            self.counts["greedy"] += len(texts)
            self.counts["greedy_same"] += sum(map(operator.eq, texts, alone))

    async def greedy(self) -> list[str]:
        """What unguided greedy requests return, one at a time."""
        texts = []
        for prompt in self.prompts[:8]:
            body = {**self.body(None, temperature=0.0, max_tokens=64), "prompt": prompt}
            answer = await self.client.post("/v1/completions", json=body)
            answer.raise_for_status()
            texts.append(answer.json()["choices"][0]["text"])
        return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=64, help="concurrent clients")
    parser.add_argument("--policy", default="demo", help="directory, hub name, or demo")
    parser.add_argument("--lenvm", help="value model; a random head on the policy otherwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = run(given, Path(scratch))
    text = json.dumps(figures, allow_nan=False)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(text + "\n")
    print(text)
    if not figures["passed"]:
        sys.exit(1)


def run(given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Start the server, load it, look at what is left."""
    policy = resolve_policy(given.policy)
    tokenizer = load_tokenizer(policy)
    lenvm = given.lenvm or random_lenvm(policy, tokenizer, scratch / "lenvm")
    prompts = [encode_prompt(tokenizer, p) for p in demo_prompts(200, seed=5)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start_server(policy, lenvm, port, given.streams, scratch)
    base = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(base, process, scratch / "server.log")
        return asyncio.run(endure(given, base, policy, prompts, process, scratch / "audit.json"))
    finally:
        process.terminate()
        process.wait(60)


def start_server(
    policy: str, lenvm: str, port: int, streams: int, scratch: Path
) -> subprocess.Popen:
    """The server, with the processor that also counts its slots."""
    options = GuidanceOptions(checkpoint=lenvm)
    extra = ["--logits-processors", "scripts.bench.audit:AuditedGuidance", "--enforce-eager"]
    extra += ["--dtype", "float32", "--kv-cache-memory-bytes", str(_POLICY_CACHE)]
    command = serve_command(policy, options, port=port, max_num_seqs=streams, extra=extra)
    environment = {
        **os.environ,
        "LENVM_CHECKPOINT": lenvm,
        "LENVM_AUDIT_FILE": str(scratch / "audit.json"),
        "LENVM_AUDIT_VALUES": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with (scratch / "server.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def wait_until_ready(base: str, process: subprocess.Popen, log: Path) -> None:
    """Until /health answers; RuntimeError with the end of the log if it never does."""
    started = time.monotonic()
    while time.monotonic() - started < 300 and process.poll() is None:
        try:
            if httpx.get(base + "/health").status_code == 200:
                CONSOLE.print(f"server is up after {time.monotonic() - started:.0f} s")
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")


async def endure(
    given: argparse.Namespace,
    base: str,
    policy: str,
    prompts: list[list[int]],
    process: subprocess.Popen,
    audit_file: Path,
) -> dict[str, Any]:
    """The load, and the figures."""
    load = Load(base, policy, prompts, given.seed)
    before = await load.greedy()
    started = time.monotonic()
    until = started + 60 * given.minutes
    watch = asyncio.create_task(watch_memory(process, started, until, load))
    await asyncio.gather(
        load.greedy_amid(until, before),
        *(load.client_loop(until) for _ in range(given.streams - 1)),
    )
    seconds = time.monotonic() - started
    memory = await watch
    try:
        after = await load.greedy()  # one at a time: the last sees an otherwise empty batch
    except httpx.HTTPError as error:
        after = []
        load.failures.append(f"after the load: {type(error).__name__}: {error}")
    audit = json.loads(audit_file.read_text())
    growth = growth_per_minute([(t, sum(by_process.values())) for t, by_process in memory])
    alive = process.poll() is None
    await load.client.aclose()
    return {
        "benchmark": "endurance",
        "streams": given.streams,
        "seconds": round(seconds, 1),
        "served": load.counts["served"],
        "cancelled": load.counts["cancelled"],
        "refused": load.counts["refused"],
        "tokens_per_s": round(load.counts["tokens"] / seconds, 1),
        "failures": load.failures[:5],
        "alive": alive,
        "steps": audit["steps"],
        "slots_leaked": audit["slots_in_use"],
        "memory_mib": [(t, round(sum(m.values()), 1), m) for t, m in memory],
        "memory_growth_mib_per_minute": growth,
        "memory_growth_by_process": {
            name: growth_per_minute([(t, m.get(name, 0.0)) for t, m in memory])
            for name in sorted({name for _, m in memory for name in m})
        },
        "reserved_mib": round((audit["cache_bytes"] + _POLICY_CACHE) / 2**20, 1),
        "unguided_unchanged": before == after,
        "unguided_amid_the_load": [load.counts["greedy_same"], load.counts["greedy"]],
        "passed": bool(
            alive
            and not load.failures
            and audit["slots_in_use"] == 0
            and before == after
            and growth < GROWTH
        ),
    }


Memory = list[tuple[float, dict[str, float]]]
"""(seconds, process -> MiB)"""


async def watch_memory(
    process: subprocess.Popen, started: float, until: float, load: Load
) -> Memory:
    """Resident memory of the server's processes, about sixty times."""
    seen: Memory = []
    pause = max(1.0, (until - started) / 60)
    while time.monotonic() < until:
        seen.append((round(time.monotonic() - started, 1), resident_mib(process.pid)))
        seconds, by_process = seen[-1]
        CONSOLE.print(f"{seconds:6.0f} s {by_process} MiB {dict(load.counts)}")
        await asyncio.sleep(pause)
    return seen


def resident_mib(pid: int) -> dict[str, float]:
    """MiB of a process and of all below it, by name; empty when it has gone."""
    found: dict[str, float] = {}
    try:
        server = psutil.Process(pid)
        for p in [server, *server.children(recursive=True)]:
            name = "server" if p.pid == pid else p.name()
            found[name] = round(found.get(name, 0.0) + p.memory_info().rss / 2**20, 1)
    except psutil.NoSuchProcess:
        return {}
    return found


def growth_per_minute(memory: list[tuple[float, float]]) -> float:
    """Slope in MiB per minute over the last two thirds, by least squares; 0 for fewer than three
    readings there."""
    steady = memory[len(memory) // 3 :]
    if len(steady) < 3:
        return 0.0
    times, sizes = zip(*steady, strict=True)
    return round(60 * statistics.linear_regression(times, sizes).slope, 2)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"{error}")
