"""Does sampling through a server keep up with vLLM's own offline engine, and survive kill -9?

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

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Both engines alike, and before vLLM is imported: one thread for matrices this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import pyarrow.parquet as pq
from rich.console import Console

from lenvm_rl.demo.prompts import demo_prompts, resolve_policy
from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.sampling.encoding import encode_prompt, tasks_of_prompts
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.run import SamplingRun
from lenvm_rl.sampling.server.engine import ServerSettings
from lenvm_rl.sampling.server.sampling import sample_from_servers
from lenvm_rl.vllm.offline import OfflineEngine
from lenvm_rl.vllm.serve import vllm_program
from scripts.bench.endurance import wait_until_ready

CONSOLE = Console(stderr=True)
BAR = 0.9
SEED = 11


def main() -> None:
    given = parse_args()
    figures: dict[str, Any] = {"benchmark": "sampling"}
    with tempfile.TemporaryDirectory() as scratch, serving(given, Path(scratch)) as base:
        if given.rounds:
            figures["throughput"] = throughput(given, base, Path(scratch))
            CONSOLE.print_json(data=figures)
        if given.kills:
            figures["kills"] = kills(given, base, Path(scratch))
    parts = [part for part in figures.values() if isinstance(part, dict)]
    figures["passed"] = all(part["passed"] for part in parts)
    text = json.dumps(figures, allow_nan=False)
    if given.json:
        with replacing(given.json) as temporary:
            temporary.write_text(text + "\n")
    print(text)
    if not figures["passed"]:
        sys.exit(1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="demo", help="directory, hub name, or demo")
    parser.add_argument("-n", type=int, default=8, help="completions per prompt")
    parser.add_argument("--prompts", type=int, default=40, help="different ones in a round")
    parser.add_argument("--max-tokens", type=int, default=64, help="of throughput")
    parser.add_argument("--rounds", type=int, default=3, help="turns of either engine; 0 skips")
    parser.add_argument("--kills", type=int, default=5, help="kill -9; 0 skips")
    parser.add_argument("--kill-prompts", type=int, default=625, help="different ones, killed")
    parser.add_argument("--kill-max-tokens", type=int, default=24)
    parser.add_argument("--max-num-seqs", type=int, default=64, help="of either engine")
    parser.add_argument("--concurrency", type=int, default=256, help="completions in flight")
    parser.add_argument("--per-request", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    given.policy = resolve_policy(given.policy)
    return given


@contextmanager
def serving(given: argparse.Namespace, scratch: Path):
    """Yield the address of a plain `vllm serve` of the policy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [vllm_program(), "serve", given.policy, "--port", str(port), "--host", "127.0.0.1"]
    command += [
        "--dtype",
        "float32",
        "--enforce-eager",
    ]
    command += ["--max-num-seqs", str(given.max_num_seqs), "--disable-uvicorn-access-log"]
    log = scratch / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


# Throughput


def throughput(given: argparse.Namespace, base: str, scratch: Path) -> dict[str, Any]:
    """Completions and tokens per second of both, in turns."""
    from vllm import LLM

    llm = LLM(
        given.policy, dtype="float32", enforce_eager=True, max_num_seqs=given.max_num_seqs, seed=1
    )
    ways = {
        "server": lambda prompts, out: rates_through_server(given, base, prompts, out),
        "offline": lambda prompts, out: rates_offline(given, llm, prompts),
        "in_process": lambda prompts, out: rates_in_process(given, llm, prompts, out),
    }
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(given.rounds + 1):  # the first warms all up
        prompts = demo_prompts(given.prompts if number else 8, seed=SEED + number)
        names = list(ways)[:: -1 if number % 2 else 1]
        rates = {name: ways[name](prompts, scratch / f"{number}-{name}") for name in names}
        shown = ", ".join(f"{name} {c:.1f}/s ({t:.0f} tok/s)" for name, (c, t) in rates.items())
        CONSOLE.print(f"{f'round {number}' if number else 'warm-up'}: {shown}")
        if number:
            rounds.append(rates)
    figures: dict[str, Any] = {
        "completions_per_round": given.prompts * given.n,
        "rounds": given.rounds,
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


def rates_offline(
    given: argparse.Namespace, llm: Any, prompts: list[Prompt]
) -> tuple[float, float]:
    """One call of `LLM.generate`, as vLLM's documentation has it."""
    from vllm import SamplingParams

    tokenizer = load_tokenizer(given.policy)
    inputs = [{"prompt_token_ids": encode_prompt(tokenizer, prompt)} for prompt in prompts]
    params = SamplingParams(n=given.n, temperature=1.0, max_tokens=given.max_tokens)
    started = time.monotonic()
    answers = llm.generate(inputs, params, use_tqdm=False)
    seconds = time.monotonic() - started
    tokens = sum(len(output.token_ids) for answer in answers for output in answer.outputs)
    return len(inputs) * given.n / seconds, tokens / seconds


def rates_in_process(
    given: argparse.Namespace, llm: Any, prompts: list[Prompt], out: Path
) -> tuple[float, float]:
    """What `lenvm sample --engine vllm` does, in the engine of `rates_offline`."""
    tokenizer = load_tokenizer(given.policy)
    run = SamplingRun(
        tasks=tasks_of_prompts(tokenizer, prompts, n=given.n, max_tokens=given.max_tokens),
        policy=given.policy,
        tokenizer_sha=tokenizer_sha(tokenizer),
        own_seeds=False,
    )
    report = fill(run, out, OfflineEngine(run, lambda resumed: llm))
    return report.completions_per_s, report.tokens_per_s


def rates_through_server(
    given: argparse.Namespace, base: str, prompts: list[Prompt], out: Path
) -> tuple[float, float]:
    """What `lenvm sample --server` reports, from the first request to the last row on disk."""
    settings = ServerSettings(
        servers=[base],
        model=given.policy,
        concurrency=given.concurrency,
        per_request=given.per_request,
    )
    report = sample_from_servers(
        settings, given.policy, prompts, out, n=given.n, max_tokens=given.max_tokens
    )
    if report.rows_missing:
        raise RuntimeError(f"{report.rows_missing} completions failed: {report.failures}")
    return report.completions_per_s, report.tokens_per_s


# Kills


def kills(given: argparse.Namespace, base: str, scratch: Path) -> dict[str, Any]:
    """Start, kill, start again, ...; then count by key."""
    out, total = scratch / "killed", given.kill_prompts * given.n
    command = [sys.executable, "-m", "lenvm_rl.cli", "sample", "--server", base, "--model"]
    command += [given.policy, "--prompts", f"demo:{given.kill_prompts}", "-n", str(given.n)]
    command += [
        "--max-tokens",
        str(given.kill_max_tokens),
        "--out",
        str(out),
        "--flush-seconds",
        "1",
    ]
    command += ["--concurrency", str(given.concurrency), "--per-request", str(given.per_request)]
    command += ["--flush-seconds", "1"]
    rows_at_kill = []
    started = time.monotonic()
    for number in range(1, given.kills + 1):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wanted = total * number // (given.kills + 1)
        while rows_on_disk(out) < wanted and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        if child.wait() != -signal.SIGKILL:
            raise RuntimeError(f"the sampler ended by itself before kill {number}: {command}")
        rows_at_kill.append(rows_on_disk(out))
        CONSOLE.print(f"kill {number} at {rows_at_kill[-1]} of {total} completions on disk")
    last = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(last.stdout.strip().splitlines()[-1])
    return {
        "completions": total,
        "kills": given.kills,
        "rows_at_kill": rows_at_kill,
        "seconds": round(time.monotonic() - started, 1),
        "rows_resumed_at_last": report["rows_resumed"],
        **account(out, given.kill_prompts, given.n),
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


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.exit(f"{error}")
