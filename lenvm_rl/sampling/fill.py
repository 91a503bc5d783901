"""Filling of a rollout file: what is missing is asked of an engine, and written as it comes.

This is written once for all engines: what is there already, rows in the file, safe on disk every
few seconds, and an account of what was not made. A run may be killed at any moment; the next one
with the same settings makes what is missing, and no completion is lost or there twice.
"""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts.files import find_shards
from lenvm_rl.rollouts.reader import RolloutReader
from lenvm_rl.rollouts.record import Rollout
from lenvm_rl.rollouts.writer import RolloutWriter
from lenvm_rl.sampling.progress import SamplingCounts, sampling_progress
from lenvm_rl.sampling.run import Engine, Failure, Key, SamplingRun, Task, guidance_column

FLUSH_ROWS = 4096
"""A shard is made after so many completions ..."""
FLUSH_SECONDS = 10.0
"""... or so many seconds: a kill loses no more, and completions of prompts that are not whole."""
_SAME = "Resume with the same arguments, or write to another directory."
_READ = (
    *("prompt_id", "sample_id", "prompt_ids", "response_ids", "finish_reason"),
    *("sampling", "policy", "guidance"),
)


@dataclass(frozen=True, kw_only=True)
class SamplingReport:
    """What a sampling run did."""

    rollouts: str
    """The rollout file."""
    prompts: int
    """Prompts asked for."""
    rows: int
    """Completions in the file that belong to this run."""
    rows_resumed: int
    """Of these, completions that an earlier, interrupted run had written."""
    rows_missing: int = 0
    """Completions that could not be made; the same command tries them again."""
    failures: dict[str, int] = field(default_factory=dict)
    """The missing completions by kind of failure."""
    tokens: int
    """Tokens generated now, EOS included."""
    seconds: float
    """Wall time of generating and writing them, without the start of the engine."""
    tokens_per_s: float
    """Throughput; 0 when nothing was left to do."""
    completions_per_s: float = 0.0
    """Throughput in completions; 0 when nothing was left to do."""
    mean_length: float
    """Mean response length in tokens over all rows, EOS included; 0 without rows."""
    share_truncated: float
    """Share of rows truncated by the token limit, in [0, 1]."""
    mean_deviation: float | None = None
    """Mean |tokens without EOS - target| / target over the rows that guidance gave a target; None
    without such rows."""
    rows_with_unknown_ids: int = 0
    """Rows with ids that stand for no token: the policy's vocabulary is padded, and it samples
    from the padding."""

    def to_dict(self) -> dict[str, Any]:
        """All figures by name."""
        return asdict(self)


def fill(
    run: SamplingRun,
    out: str | Path,
    engine: Engine,
    *,
    progress: bool | str = False,
    flush_rows: int = FLUSH_ROWS,
    flush_seconds: float = FLUSH_SECONDS,
    on_failure: Callable[[Failure], None] | None = None,
) -> SamplingReport:
    """Make the completions of `run` that `out` does not hold yet.

    Args:
        out: rollout directory, which a run with the same settings goes on with; or .parquet file,
            which must not exist and appears when all is done.
        engine: makes completions; not called when nothing is missing.
        progress: show throughput, share truncated and remaining time on stderr; a text names the
            run there.
        flush_rows, flush_seconds: how much work a kill may cost.
        on_failure: told of every failure as it happens.
    Raises:
        ValueError: `out` holds completions that this run would not make.
    """
    counts = SamplingCounts(total=run.total)
    done = completed(run, out, counts)
    tasks = {task.prompt_id: task for task in run.tasks}

    def fail(failure: Failure) -> None:
        counts.fail(failure.kind, len(failure.sample_ids))
        if on_failure is not None:
            on_failure(failure)

    for failure in run.refused():
        fail(failure)
    started = time.monotonic()
    if counts.left:
        writer = RolloutWriter(
            out,
            tokenizer_sha=run.tokenizer_sha,
            vocab_size=run.vocab_size,
            eos_ids=None if run.eos_ids is None else sorted(run.eos_ids),
            append=bool(done),
            retokenized=run.retokenized,
            chat_template_args=run.chat_template_args,
        )
        with writer, ExitStack() as stack:
            results = engine(run.missing(done), len(done))
            if hasattr(results, "close"):  # a generator stops its work when the run ends
                stack.enter_context(closing(results))
            started = time.monotonic()
            title = progress if isinstance(progress, str) else "sampling"
            show = stack.enter_context(sampling_progress(counts, title, shown=bool(progress)))
            sink = _Sink(tasks, writer, done, flush_rows, flush_seconds)
            stack.callback(sink.close)  # of an interrupted run too: what is sampled is kept
            for result in results:
                row = result
                if isinstance(row, Rollout):
                    row = _checked(run, row, tasks[row.prompt_id])
                if isinstance(row, Failure):
                    fail(row)
                else:
                    sink.add(row)
                    counts.add(row, unknown_ids=run.has_unknown_ids(row.response_ids))
                show()
    return _report(run, out, counts, len(done), time.monotonic() - started)


def _report(
    run: SamplingRun, out: str | Path, counts: SamplingCounts, resumed: int, seconds: float
) -> SamplingReport:
    return SamplingReport(
        rollouts=str(out),
        prompts=len(run.tasks),
        rows=counts.rows,
        rows_resumed=resumed,
        rows_missing=run.total - counts.rows,
        failures=dict(counts.failures),
        tokens=counts.new_tokens,
        seconds=seconds,
        tokens_per_s=counts.new_tokens / seconds if counts.new_tokens else 0.0,
        completions_per_s=counts.new_rows / seconds if counts.new_rows else 0.0,
        mean_length=counts.tokens / counts.rows if counts.rows else 0.0,
        share_truncated=counts.share_truncated,
        mean_deviation=counts.mean_deviation,
        rows_with_unknown_ids=counts.with_unknown_ids,
    )


def completed(run: SamplingRun, out: str | Path, counts: SamplingCounts) -> set[Key]:
    """Keys of the run's completions that the directory `out` holds, which are counted; none when
    it has no whole shard yet.

    Raises:
        ValueError: a completion that this run would not make, one that is there twice, or another
            tokenizer or guidance.
    """
    if not Path(out).is_dir() or not find_shards(out).paths:
        return set()
    reader = RolloutReader(out, tokenizer_sha=run.tokenizer_sha)
    if bool(reader.metadata.get("retokenized")) != run.retokenized:
        raise ValueError(
            f"{out} and this run differ in whether token ids come from the engine or from text. "
            + _SAME
        )
    tasks = {task.prompt_id: task for task in run.tasks if not task.refused}
    keys: set[Key] = set()
    for cells in reader.iter_rows([*_READ]):
        key = cells["prompt_id"], cells["sample_id"]
        _check_expected(run, out, key, cells, tasks.get(key[0]))
        if key in keys:
            raise ValueError(
                f"{out} holds completion {key[1]} of prompt {key[0]!r} twice: it was not written "
                "by one run. Write to another directory."
            )
        keys.add(key)
        row = Rollout(**cells)
        counts.add(row, unknown_ids=run.has_unknown_ids(row.response_ids), new=False)
    return keys


def _check_expected(
    run: SamplingRun, out: Any, key: Key, cells: dict[str, Any], task: Task | None
) -> None:
    """Raise ValueError unless the run would write such a row."""
    found: Any = None
    if task is not None and key[1] < task.n:
        request = run.request(task, key[1])
        guided = guidance_column(request.guidance, request.lenvm)
        if cells["guidance"] != guided:
            raise ValueError(
                f"{out} holds completions with guidance {cells['guidance']}, this run's is "
                f"{guided}. {_SAME}"
            )
        expected = {
            "prompt_ids": list(task.prompt_ids),
            "sampling": dict(request.sampling),
            "policy": {"name": run.policy, "revision": None},
        }
        if all(cells[name] == expected[name] for name in expected):
            return
        found = {name: cells[name] for name in ("sampling", "policy")}
    raise ValueError(
        f"{out} holds completion {key[1]} of prompt {key[0]!r}, which this run would "
        f"not make (found {found}): it was sampled with other prompts, settings or seed. {_SAME}"
    )


def _checked(run: SamplingRun, row: Rollout, task: Task) -> Rollout | Failure:
    """The row, or why the file does not take it; the others are not concerned."""
    try:
        run.check(row)
    except Exception as error:  # an engine may return anything
        kind = getattr(error, "kind", None) or f"no row of a rollout file ({type(error).__name__})"
        return Failure(task=task, sample_ids=[row.sample_id], kind=kind, detail=str(error))
    return row


class _Sink:
    """Rows on their way to disk.

    Completions are held until all of their prompt are there, so that they lie side by side. Short
    ones finish first: in that order neighbours in the file would have similar lengths, and neither
    the spread within prompts nor grouped batches could be read off it.
    """

    def __init__(
        self,
        tasks: dict[str, Task],
        writer: RolloutWriter,
        done: set[Key],
        flush_rows: int,
        flush_seconds: float,
    ):
        self._tasks, self._writer = tasks, writer
        self._flush_rows, self._flush_seconds = flush_rows, flush_seconds
        present = Counter(prompt_id for prompt_id, _ in done)
        self._left = {name: task.n - present[name] for name, task in tasks.items()}
        self._held: dict[str, dict[int, Rollout]] = {}
        self._unsaved, self._saved_at = 0, time.monotonic()

    def add(self, row: Rollout) -> None:
        """Take a completion; it is on disk when its prompt is whole and the next flush is due."""
        group = self._held.setdefault(row.prompt_id, {})
        assert row.sample_id not in group and self._left[row.prompt_id] > 0, row.prompt_id
        group[row.sample_id] = row
        self._left[row.prompt_id] -= 1
        if not self._left[row.prompt_id]:
            self._write(self._held.pop(row.prompt_id))
        if self._unsaved and (
            self._unsaved >= self._flush_rows
            or time.monotonic() - self._saved_at > self._flush_seconds
        ):
            self._writer.flush()
            self._unsaved, self._saved_at = 0, time.monotonic()

    def close(self) -> None:
        """Write completions of prompts that are not whole; the writer flushes when it closes."""
        for group in self._held.values():
            self._write(group)
        self._held.clear()

    def _write(self, group: dict[int, Rollout]) -> None:
        rows: Sequence[Rollout] = [group[sample_id] for sample_id in sorted(group)]
        images = self._tasks[rows[0].prompt_id].images
        if images and all(image.startswith("data:") for image in images):  # URLs are not fetched
            pictures = [self._picture(image) for image in images]
            for row in rows:
                row.pictures = pictures
        self._writer.append(rows)
        self._unsaved += len(rows)

    def _picture(self, uri: str) -> str:
        head, _, data = uri.partition(",")
        mime = head.removeprefix("data:").partition(";")[0]
        return self._writer.add_picture(base64.b64decode(data), mime)
