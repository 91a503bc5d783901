"""Does the memory of reading rollouts stay flat as a data set grows?

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

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutStream, RolloutWriter, length_report

VOCAB = 151_936
SAMPLES = 16
MAX_TOKENS = 4_096
TASKS = ("stream", "report")


def main() -> None:
    args = parse_args()
    if args.worker:
        print(json.dumps(WORKERS[args.worker](Path(args.data), args.window_rows)))
        return
    # So that the files are removed when the run is terminated too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    root = Path(tempfile.mkdtemp(prefix="bench_rollouts_", dir=args.dir))
    try:
        figures = run(root, args.tokens, args.window_rows)
    finally:
        shutil.rmtree(root)
    line = json.dumps(figures)
    if args.json:
        temporary = Path(f"{args.json}.tmp")
        temporary.write_text(line + "\n")
        os.replace(temporary, args.json)
    print(line)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tokens",
        type=lambda text: [int(float(part)) for part in text.split(",")],
        default=[10_000_000, 300_000_000],
        help="sizes of the generated files in tokens, comma-separated (default 10e6,300e6)",
    )
    parser.add_argument(
        "--window-rows",
        type=int,
        default=16_384,
        help="shuffle window of the stream (default 16384)",
    )
    parser.add_argument("--dir", help="where to put the files for the time of the run")
    parser.add_argument("--json", help="write the figures to this file too")
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(root: Path, sizes: list[int], window_rows: int) -> dict:
    """Figures of every size, and the ratio of the largest to the smallest one's peak."""
    results = []
    for tokens in sizes:
        data = root / f"{tokens}"
        result = {"tokens_asked": tokens, **generate(data, tokens)}
        print(f"{tokens:,} tokens: wrote {result['rows']:,} rows", flush=True)
        for task in TASKS:
            figures = measure(task, data, window_rows)
            figures["rows_per_s"] = round(figures["seen_rows"] / figures["seconds"])
            figures["tokens_per_s"] = round(figures["seen_tokens"] / figures["seconds"])
            result[task] = figures
            print(f"  {task}: {figures}", flush=True)
        results.append(result)
        shutil.rmtree(data)
    summary = {"bench": "rollouts", "window_rows": window_rows, "sizes": results}
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


def measure(task: str, data: Path, window_rows: int) -> dict:
    """Run one task in a fresh process, whose last line of output has its figures."""
    command = [sys.executable, "-m", "scripts.bench.rollouts", "--worker", task]
    command += ["--data", str(data)]
    command += ["--window-rows", str(window_rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


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


WORKERS = {"stream": stream_all, "report": report_all}

if __name__ == "__main__":
    main()
