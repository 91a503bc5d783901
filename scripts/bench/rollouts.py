"""Memory of reading rollouts as a data set grows, and how fast it goes.

    python -m scripts.bench rollouts --json rollouts.json

Generates rollout files of several sizes (default 10 and 300 million tokens: int32 ids drawn from a
Zipf-like law over 151,936 entries, 16 completions per prompt with log-normal lengths of mean about
470 tokens, cut at 4,096), then measures, each in a fresh process, (a) one epoch of `RolloutStream`
over all rows and columns and (b) `length_report`: peak resident memory, rows/s and tokens/s (of
the tokens that the task reads); `cpu_seconds` counts imports too. `import_mib` is the resident
memory after imports, which no data set can change; `flat_ratio` compares whole peaks,
`flat_ratio_above_import` what is left of them above the imports.

The last line of stdout is one JSON object with all figures. The files take about 2.1 bytes per
token and are removed at the end.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutStream, RolloutWriter, length_report
from scripts.bench import harness
from scripts.bench.harness import CONSOLE

VOCAB = 151_936
SAMPLES = 16
MAX_TOKENS = 4_096


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """Sizes."""

    tokens: str = "10e6,300e6"
    """Sizes of the generated files in tokens, comma-separated."""
    window_rows: int = 16_384
    """Shuffle window of the stream."""
    dir: Path | None = None
    """Where to put the files for the time of the run."""


def run(options: Options) -> dict[str, Any]:
    """Figures of every size, and the ratio of the largest to the smallest one's peak."""
    # So that the files are removed when the run is terminated too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = []
    with tempfile.TemporaryDirectory(prefix="bench_rollouts_", dir=options.dir) as root:
        for tokens in (int(float(part)) for part in options.tokens.split(",")):
            data = Path(root) / f"{tokens}"
            result = {"tokens_asked": tokens, **generate(data, tokens)}
            CONSOLE.print(f"{tokens:,} tokens: wrote {result['rows']:,} rows")
            for task, read in TASKS.items():
                figures = in_fresh_process(read, data, options.window_rows)
                figures["rows_per_s"] = round(figures["seen_rows"] / figures["seconds"])
                figures["tokens_per_s"] = round(figures["seen_tokens"] / figures["seconds"])
                result[task] = figures
                CONSOLE.print(f"  {task}: {figures}")
            results.append(result)
            shutil.rmtree(data)
    summary: dict[str, Any] = {"window_rows": options.window_rows, "sizes": results}
    for task in TASKS:
        peaks = [r[task]["peak_mib"] for r in results]
        above = [r[task]["peak_mib"] - r[task]["import_mib"] for r in results]
        summary[f"{task}_flat_ratio"] = round(max(peaks) / min(peaks), 3)
        summary[f"{task}_flat_ratio_above_import"] = round(max(above) / min(above), 3)
    return summary


def generate(path: Path, tokens: int) -> dict:
    """Write a rollout file of about `tokens` tokens, prompts included."""
    start = time.perf_counter()
    with RolloutWriter(path, tokenizer_sha="generated", vocab_size=VOCAB, eos_ids=[0]) as writer:
        writer.append(rollouts(tokens))
    seconds = time.perf_counter() - start
    reader = RolloutReader(path)
    size = sum(shard.stat().st_size for shard in reader.shards)
    total = sum(
        len(batch.column(name).flatten())
        for batch in reader.iter_batches(["prompt_ids", "response_ids"])
        for name in ("prompt_ids", "response_ids")
    )
    return {
        "rows": len(reader),
        "tokens": total,
        "bytes_per_token": round(size / total, 2),
        "write_s": round(seconds, 2),
        "write_tokens_per_s": round(total / seconds),
    }


def rollouts(tokens: int) -> Iterator[Rollout]:
    """Generated completions until `tokens` tokens are reached."""
    rng = np.random.default_rng(0)
    names = rng.permutation(np.arange(1, VOCAB, dtype=np.int32))
    done = prompt = 0
    while done < tokens:
        prompt_ids = token_ids(rng, names, int(rng.integers(40, 200)))
        scale = rng.lognormal(5.9, 0.5)
        for sample in range(SAMPLES):
            length = int(scale * rng.lognormal(0.0, 0.5)) + 2
            truncated = length > MAX_TOKENS
            response = token_ids(rng, names, min(length, MAX_TOKENS))
            response[-1] = response[-1] if truncated else 0
            done += len(prompt_ids) + len(response)
            yield Rollout(
                prompt_id=f"prompt-{prompt}",
                sample_id=sample,
                prompt_ids=prompt_ids,
                response_ids=response,
                finish_reason="length" if truncated else "stop",
                prompt_messages=[{"role": "user", "content": "generated " * 20}],
                data_source=("math", "code", "chat")[prompt % 3],
                ground_truth=str(prompt),
                sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": MAX_TOKENS},
                policy={"name": "generated", "revision": "0"},
            )
        prompt += 1


def token_ids(rng: np.random.Generator, names: np.ndarray, count: int) -> np.ndarray:
    """Ids whose frequency falls about as 1/rank, [count] int32."""
    rank = (len(names) ** rng.random(count)).astype(np.int64) - 1
    return names[rank]


def in_fresh_process(read: Callable[[Path, int], dict], data: Path, window_rows: int) -> dict:
    """What a task of `TASKS` returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(read, data, window_rows).result()


def stream_all(data: Path, window_rows: int) -> dict:
    before = peak_mib()
    start = time.perf_counter()
    rows = tokens = 0
    for row in RolloutStream(data, seed=0, epochs=1, window_rows=window_rows):
        rows += 1
        tokens += len(row.prompt_ids) + len(row.response_ids)
    return {"seen_rows": rows, "seen_tokens": tokens, **figures_since(start, before)}


def report_all(data: Path, window_rows: int) -> dict:
    before = peak_mib()
    start = time.perf_counter()
    report = length_report(data)
    seen = {"seen_rows": report.overall.rows, "seen_tokens": report.overall.tokens}
    return {**seen, **figures_since(start, before)}


def figures_since(start: float, import_mib: float) -> dict:
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time(), 2),
        "import_mib": round(import_mib, 1),
        "peak_mib": round(peak_mib(), 1),
    }


def peak_mib() -> float:
    """Largest resident set of this process so far.

    From /proc where there is one: Linux hands `ru_maxrss` of the parent down to a child.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


TASKS = {"stream": stream_all, "report": report_all}
