"""The own stream of rollouts beside `datasets` and torchdata's StatefulDataLoader.

    python -m scripts.bench stream --json stream.json

Generates rollout files of several sizes (as `rollouts` does) and reads one shuffled epoch of each,
in a fresh process, by three readers that hand out the same `Rollout` objects in batches:

    stream      RolloutStream
    mapped      datasets.load_dataset (a copy in Arrow, memory-mapped), torchdata's RandomSampler
                and StatefulDataLoader
    streaming   the same with streaming=True and a shuffle buffer of `WINDOW` rows

Figures of each: seconds until the first batch; rows/s and tokens/s of the epoch, and the
CPU seconds of both; bytes of its copy
on disk; peak resident memory above the imports, and its part that is no mapped file (`anonymous`);
rows that come twice or never; whether a new process that takes the state saved in the middle of the
epoch goes on with the very same rows, and its seconds until it does. `slope` is peak anonymous
memory per further token, in bytes, from the smallest to the largest size.
"""

from __future__ import annotations

import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutStream
from scripts.bench import harness
from scripts.bench.harness import CONSOLE
from scripts.bench.rollouts import SAMPLES, generate, in_fresh_process

BATCH, WINDOW, AFTER = 256, 16_384, 4
COLUMNS = ["prompt_id", "sample_id", "prompt_ids", "response_ids", "finish_reason"]
READERS = ("stream", "mapped", "streaming")


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """Sizes."""

    tokens: str = "30e6,300e6"
    """Sizes of the generated files in tokens, comma-separated."""
    readers: str = ",".join(READERS)
    """What is measured."""
    dir: Path | None = None
    """Where to put the files for the time of the run."""


def run(options: Options) -> dict[str, Any]:
    """Figures of every size and reader, and by how much memory grows with the tokens."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the files are removed then too
    readers, sizes = options.readers.split(","), []
    for size in options.tokens.split(","):
        with tempfile.TemporaryDirectory(prefix="bench_stream_", dir=options.dir) as root:
            data = Path(root) / "rollouts"
            found: dict[str, Any] = {"file": generate(data, int(float(size)))}
            for kind in readers:
                found[kind] = in_process(epoch, kind, data) | in_process(resume, kind, data)
                CONSOLE.print(f"{size} {kind}: {found[kind]}")
            sizes.append(found)
    figures: dict[str, Any] = {"batch": BATCH, "window": WINDOW, "sizes": sizes}
    for kind in readers:
        grown = sizes[-1][kind]["anonymous_mib"] - sizes[0][kind]["anonymous_mib"]
        more = sizes[-1]["file"]["tokens"] - sizes[0]["file"]["tokens"]
        figures[f"{kind}_slope"] = round(grown * 2**20 / more, 3) if more else None
    return figures


def open_reader(kind: str, data: Path) -> tuple[Any, Callable[[], Iterator[list[Rollout]]]]:
    """Something with `state_dict` and `load_state_dict`, and a function that starts its batches."""
    if kind == "stream":
        stream = RolloutStream(data, seed=0, epochs=1, window_rows=WINDOW, columns=[])
        return stream, lambda: iter(lambda: stream.batch(BATCH), [])
    import torch
    from datasets import load_dataset
    from torchdata.stateful_dataloader import StatefulDataLoader
    from torchdata.stateful_dataloader.sampler import RandomSampler

    files = [str(path) for path in sorted(data.glob("part-*.parquet"))]
    options = {"data_files": files, "split": "train", "columns": COLUMNS}
    if kind == "streaming":
        rows = load_dataset("parquet", streaming=True, **options)
        rows = rows.shuffle(seed=0, buffer_size=WINDOW)
        loader = StatefulDataLoader(rows, BATCH, collate_fn=to_rollouts)
    else:
        table = load_dataset("parquet", cache_dir=str(data / kind), **options).with_format("arrow")
        order = RandomSampler(table, generator=torch.Generator().manual_seed(0))
        loader = StatefulDataLoader(Mapped(table), BATCH, sampler=order, collate_fn=list)
    return loader, lambda: iter(loader)


class Mapped:
    """A memory-mapped table as rows; a batch is one look-up."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, places: list[int]) -> list[Rollout]:
        from lenvm_rl.rollouts.record import batch_to_dicts

        batch = self.table[places].combine_chunks().to_batches()[0]
        return [Rollout(**cells) for cells in batch_to_dicts(batch)]


def to_rollouts(rows: list[dict[str, Any]]) -> list[Rollout]:
    """Rows of a streamed data set."""
    return [Rollout(**row) for row in rows]


class Memory:
    """Peak memory of this process in MiB, looked at ten times a second."""

    def __init__(self) -> None:
        self.before = memory()
        self.peak = dict(self.before)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            now = memory()
            self.peak = {key: max(value, now[key]) for key, value in self.peak.items()}
            time.sleep(0.1)

    def figures(self) -> dict[str, float]:
        """Peaks above what there was at the start."""
        return {f"{key}_mib": round(self.peak[key] - self.before[key], 1) for key in self.peak}


def memory() -> dict[str, float]:
    """Resident memory, and its part that is no file, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)
           if name in ("VmRSS", "RssAnon")}  # fmt: skip
    return {"resident": kib["VmRSS"] / 1024, "anonymous": kib["RssAnon"] / 1024}


def epoch(kind: str, data: Path) -> dict[str, Any]:
    """One epoch, with the state in its middle and the keys that come after it."""
    if kind != "stream":
        import datasets  # noqa: F401 (an import is no memory of the data)
        import torch  # noqa: F401
        import torchdata.stateful_dataloader  # noqa: F401
    watch, started, before = Memory(), time.perf_counter(), time.process_time()
    reader, batches = open_reader(kind, data)
    total = len(RolloutReader(data))
    seen = bytearray(total)
    rows = tokens = 0
    first, half = 0.0, total // 2
    state, after = None, []
    for batch in batches():
        first = first or time.perf_counter() - started
        rows += len(batch)
        tokens += sum(len(row.prompt_ids) + len(row.response_ids) for row in batch)
        keys = [(row.prompt_id, row.sample_id) for row in batch]
        if state is not None and len(after) < AFTER:
            after.append(keys)
        if state is None and rows >= half:
            state = reader.state_dict()
        for name, sample in keys:
            seen[int(name.removeprefix("prompt-")) * SAMPLES + sample] += 1
    seconds = time.perf_counter() - started - first
    (data / f"{kind}.pickle").write_bytes(pickle.dumps((state, after)))
    copy = sum(file.stat().st_size for file in (data / kind).rglob("*") if file.is_file())
    return {
        "first_batch_s": round(first, 2),
        "rows": rows,
        "tokens": tokens,
        "rows_per_s": round(rows / seconds),
        "tokens_per_s": round(tokens / seconds),
        "cpu_s": round(time.process_time() - before, 1),
        "copy_mib": round(copy / 2**20, 1),
        "twice_or_never": total - seen.count(1),
        **watch.figures(),
    }


def resume(kind: str, data: Path) -> dict[str, Any]:
    """Go on in the middle of the epoch: are the next rows the same?"""
    state, after = pickle.loads((data / f"{kind}.pickle").read_bytes())
    started = time.perf_counter()
    reader, batches = open_reader(kind, data)
    reader.load_state_dict(state)
    found, first = [], 0.0
    for batch in batches():
        first = first or time.perf_counter() - started
        found.append([(row.prompt_id, row.sample_id) for row in batch])
        if len(found) == AFTER:
            break
    return {"exact": found == after, "resume_s": round(first, 2)}


def in_process(read: Callable[[str, Path], dict[str, Any]], kind: str, data: Path) -> dict:
    """One measurement in a process of its own."""
    return in_fresh_process(partial(_one, read, kind), data, WINDOW)


def _one(read: Callable[[str, Path], dict[str, Any]], kind: str, data: Path, _: int) -> dict:
    return read(kind, data)
