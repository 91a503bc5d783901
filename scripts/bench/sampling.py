"""Sampling through a server beside vLLM's own offline engine, and under kill -9.

    python -m scripts.bench sampling                     both questions, about ten minutes
    python -m scripts.bench sampling --kills 0           throughput alone
    python -m scripts.bench sampling --rounds 0          5,000 completions, killed five times

Throughput: the shipped policy behind `vllm serve` and in vLLM's `LLM`, one after the other on the
same prompts, `--rounds` times; between its turns an engine is idle. Ours is `lenvm sample --server`
writing a rollout file, theirs is one call of `LLM.generate` that writes nothing. Bar: at least 0.9
of its completions per second (median over rounds of the ratio within a round). Beside them, without
a bar: `lenvm sample --engine vllm` in the same engine as theirs.

Kills: the sampler, a process of its own, gets SIGKILL when a share of the completions is on disk,
as often as asked for, and is started again with the same command. Counted by key afterwards: none
may be missing, none may be there twice.

The last line of stdout is one JSON object; exit status 1 when a bar is missed.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

# Both engines alike, and before vLLM is imported: one thread for matrices this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import pyarrow.parquet as pq
import tyro

from lenvm_rl.demo.prompts import demo_prompts, resolve_policy
from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.sampling.encoding import encode_prompt, tasks_of_prompts
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.run import EngineFacts, SamplingRun
from lenvm_rl.sampling.server.engine import ServerEngine, ServerSettings
from lenvm_rl.vllm.offline import VllmEngine
from lenvm_rl.vllm.serve import vllm_program
from scripts.bench import harness
from scripts.bench.harness import CONSOLE, Failed
from scripts.bench.serving import serving, stop

BAR = 0.9
SEED = 11


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """Sizes of both parts."""

    policy: str = "demo"
    """Directory, hub name, or demo."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    """Completions per prompt."""
    prompts: int = 40
    """Different ones in a round."""
    max_tokens: int = 64
    """Of throughput."""
    rounds: int = 3
    """Turns of either engine; 0 skips."""
    kills: int = 5
    """kill -9; 0 skips."""
    kill_prompts: int = 625
    """Different ones, killed."""
    kill_max_tokens: int = 24
    """Of those."""
    max_num_seqs: int = 64
    """Of either engine."""
    concurrency: int = 256
    """Completions in flight."""
    per_request: int = 8
    """Completions asked for at once."""


def run(options: Options) -> dict[str, Any]:
    """Throughput, then kills, with one server."""
    options = replace(options, policy=resolve_policy(options.policy))
    settings = ["--dtype", "float32", "--enforce-eager", "--disable-uvicorn-access-log"]
    settings += ["--max-num-seqs", str(options.max_num_seqs), "--host", "127.0.0.1"]

    def command(port: int) -> list[str]:
        return [vllm_program(), "serve", options.policy, "--port", str(port), *settings]

    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        with serving(command, scratch / "server.log") as (base, _):
            if options.rounds:
                figures["throughput"] = throughput(options, base, scratch)
                CONSOLE.print_json(data=figures)
            if options.kills:
                figures["kills"] = kills(options, base, scratch)
    return {**figures, "passed": all(part["passed"] for part in figures.values())}


# Throughput


def throughput(options: Options, base: str, scratch: Path) -> dict[str, Any]:
    """Completions and tokens per second of both, in turns."""
    from vllm import LLM

    llm = LLM(
        options.policy,
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=options.max_num_seqs,
        seed=1,
    )
    ways = {
        "server": lambda prompts, out: rates_through_server(options, base, prompts, out),
        "offline": lambda prompts, out: rates_offline(options, llm, prompts),
        "in_process": lambda prompts, out: rates_in_process(options, llm, prompts, out),
    }
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(options.rounds + 1):  # the first warms all up
        prompts = demo_prompts(options.prompts if number else 8, seed=SEED + number)
        names = list(ways)[:: -1 if number % 2 else 1]
        rates = {name: ways[name](prompts, scratch / f"{number}-{name}") for name in names}
        shown = ", ".join(f"{name} {c:.1f}/s ({t:.0f} tok/s)" for name, (c, t) in rates.items())
        CONSOLE.print(f"{f'round {number}' if number else 'warm-up'}: {shown}")
        if number:
            rounds.append(rates)
    stop(llm)
    figures: dict[str, Any] = {
        "completions_per_round": options.prompts * options.n,
        "rounds": options.rounds,
    }
    for name in ways:
        for index, unit in enumerate(("completions", "tokens")):
            middle = statistics.median(rates[name][index] for rates in rounds)
            figures[f"{name}_{unit}_per_s"] = round(middle, 2)
    for name in ("server", "in_process"):
        ratios = [rates[name][0] / rates["offline"][0] for rates in rounds]
        figures[f"{name}_ratios"] = [round(ratio, 3) for ratio in ratios]
        figures[f"{name}_ratio"] = round(statistics.median(ratios), 3)
    return {**figures, "bar": BAR, "passed": figures["server_ratio"] >= BAR}


def rates_offline(options: Options, llm: Any, prompts: list[Prompt]) -> tuple[float, float]:
    """One call of `LLM.generate`, as vLLM's documentation has it."""
    from vllm import SamplingParams

    tokenizer = load_tokenizer(options.policy)
    inputs = [{"prompt_token_ids": encode_prompt(tokenizer, prompt)} for prompt in prompts]
    params = SamplingParams(n=options.n, temperature=1.0, max_tokens=options.max_tokens)
    started = time.monotonic()
    answers = llm.generate(inputs, params, use_tqdm=False)
    seconds = time.monotonic() - started
    tokens = sum(len(output.token_ids) for answer in answers for output in answer.outputs)
    return len(inputs) * options.n / seconds, tokens / seconds


def rates_in_process(
    options: Options, llm: Any, prompts: list[Prompt], out: Path
) -> tuple[float, float]:
    """What `lenvm sample --engine vllm` does, in the engine of `rates_offline`."""
    tokenizer = load_tokenizer(options.policy)
    facts = EngineFacts(
        policy=options.policy, tokenizer_sha=tokenizer_sha(tokenizer), own_seeds=False
    )
    engine = VllmEngine(lambda resumed: llm, facts)
    tasks = tasks_of_prompts(tokenizer, prompts, n=options.n, max_tokens=options.max_tokens)
    report = fill(SamplingRun.of(engine, tasks), out, engine)
    return report.completions_per_s, report.tokens_per_s


def rates_through_server(
    options: Options, base: str, prompts: list[Prompt], out: Path
) -> tuple[float, float]:
    """What `lenvm sample --server` reports, from the first request to the last row on disk."""
    settings = ServerSettings(
        server=[base],
        model=options.policy,
        concurrency=options.concurrency,
        per_request=options.per_request,
    )
    engine = ServerEngine.open(settings, options.policy)
    tasks = tasks_of_prompts(engine.tokenizer, prompts, n=options.n, max_tokens=options.max_tokens)
    report = fill(SamplingRun.of(engine, tasks), out, engine)
    if report.rows_missing:
        raise Failed(f"{report.rows_missing} completions failed: {report.failures}")
    return report.completions_per_s, report.tokens_per_s


# Kills


def kills(options: Options, base: str, scratch: Path) -> dict[str, Any]:
    """Start, kill, start again, ...; then count by key."""
    out, total = scratch / "killed", options.kill_prompts * options.n
    command = [sys.executable, "-m", "lenvm_rl.cli", "sample", "--server", base]
    command += ["--policy", options.policy, "--prompts", f"demo:{options.kill_prompts}"]
    command += ["-n", str(options.n), "--max-tokens", str(options.kill_max_tokens)]
    command += ["--out", str(out), "--flush-seconds", "1"]
    command += ["--concurrency", str(options.concurrency)]
    command += ["--per-request", str(options.per_request)]
    rows_at_kill = []
    started = time.monotonic()
    for number in range(1, options.kills + 1):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wanted = total * number // (options.kills + 1)
        while rows_on_disk(out) < wanted and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        if child.wait() != -signal.SIGKILL:
            raise Failed(f"the sampler ended by itself before kill {number}: {command}")
        rows_at_kill.append(rows_on_disk(out))
        CONSOLE.print(f"kill {number} at {rows_at_kill[-1]} of {total} completions on disk")
    last = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(last.stdout.strip().splitlines()[-1])
    return {
        "completions": total,
        "kills": options.kills,
        "rows_at_kill": rows_at_kill,
        "seconds": round(time.monotonic() - started, 1),
        "rows_resumed_at_last": report["rows_resumed"],
        **account(out, options.kill_prompts, options.n),
    }


def rows_on_disk(out: Path) -> int:
    """Rows in whole shards."""
    return sum(pq.read_metadata(shard).num_rows for shard in out.glob("part-*.parquet"))


def account(out: Path, prompts: int, n: int) -> dict[str, Any]:
    """Completions that are missing, twice there, or nobody's, by key."""
    expected = {(p.prompt_id, k) for p in demo_prompts(prompts, seed=0) for k in range(n)}
    seen: Counter[tuple[str, int]] = Counter()
    for row in RolloutReader(out).iter_rows(["prompt_id", "sample_id"]):
        seen[row["prompt_id"], row["sample_id"]] += 1
    lost, twice = len(expected - set(seen)), sum(count > 1 for count in seen.values())
    foreign = len(set(seen) - expected)
    return {
        "rows": seen.total(),
        "lost": lost,
        "twice": twice,
        "foreign": foreign,
        "passed": not (lost or twice or foreign) and seen.total() == len(expected),
    }
