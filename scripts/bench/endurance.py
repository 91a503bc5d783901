"""A guided server under a long mixed load of 64 streams, some of them cancelled or malformed.

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

import asyncio
import json
import operator
import random
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from lenvm_rl.demo.prompts import demo_prompts, resolve_policy
from lenvm_rl.model import load_tokenizer
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.vllm.options import GuidanceOptions
from lenvm_rl.vllm.serve import serve_command
from scripts.bench import harness
from scripts.bench.exactness import random_lenvm
from scripts.bench.harness import CONSOLE
from scripts.bench.serving import serving

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


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """The load."""

    minutes: float = 10.0
    """Of the load."""
    streams: int = 64
    """Concurrent clients."""
    policy: str = "demo"
    """Directory, hub name, or demo."""
    lenvm: str | None = None
    """Value model; a random head on the policy otherwise."""
    seed: int = 0
    """Of what the clients do."""


def run(options: Options) -> dict[str, Any]:
    """Start the server, load it, look at what is left."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        policy = resolve_policy(options.policy)
        tokenizer = load_tokenizer(policy)
        lenvm = options.lenvm or random_lenvm(policy, tokenizer, scratch / "lenvm")
        prompts = [encode_prompt(tokenizer, p) for p in demo_prompts(200, seed=5)]
        # The processor also counts its slots.
        extra = ["--logits-processors", "scripts.bench.audit:AuditedGuidance", "--enforce-eager"]
        extra += ["--dtype", "float32", "--kv-cache-memory-bytes", str(_POLICY_CACHE)]
        environment = {
            "LENVM_CHECKPOINT": lenvm,
            "LENVM_AUDIT_FILE": str(scratch / "audit.json"),
            "LENVM_AUDIT_VALUES": "0",
            "VLLM_NO_USAGE_STATS": "1",
        }

        def command(port: int) -> list[str]:
            guidance = GuidanceOptions(checkpoint=lenvm)
            return serve_command(
                policy, guidance, port=port, max_num_seqs=options.streams, extra=extra
            )

        with serving(command, scratch / "server.log", environment) as (base, process):
            load = Load(base, policy, prompts, options.seed)
            return asyncio.run(endure(options, load, process, scratch / "audit.json"))


async def endure(
    options: Options, load: Load, process: subprocess.Popen, audit_file: Path
) -> dict[str, Any]:
    """The load, and the figures."""
    before = await load.greedy()
    started = time.monotonic()
    until = started + 60 * options.minutes
    watch = asyncio.create_task(watch_memory(process, started, until, load))
    await asyncio.gather(
        load.greedy_amid(until, before),
        *(load.client_loop(until) for _ in range(options.streams - 1)),
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
        "load_seconds": round(seconds, 1),
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
