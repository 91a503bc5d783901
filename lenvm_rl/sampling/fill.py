"""How do the missing completions of a run get into its file, whoever makes them?

An engine is a function that takes what is missing and yields completions as they finish. This is
the rest, once for all engines: what is there already, rows in the file, safe on disk every few
seconds, and an account of what was not made. A run may be killed at any moment; the next one with
the same settings makes what is missing, and no completion is lost or there twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts.record import Rollout
from lenvm_rl.rollouts.writer import RolloutWriter
from lenvm_rl.sampling.progress import SamplingCounts, sampling_progress
from lenvm_rl.sampling.run import Failure, Key, Sample, SamplingRun, Task

FLUSH_ROWS = 4096
"""A shard is made after so many completions ..."""
FLUSH_SECONDS = 10.0
"""... or so many seconds: a kill loses no more, and completions of prompts that are not whole."""

Produce = Callable[[Iterator[tuple[Task, int]], int], Iterator[Sample | Failure]]
"""An engine: `produce(missing, resumed)` starts it and returns its results as they come. `missing`
is read as fast as the engine takes work; `resumed` is how many completions are there already."""


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
    """Share of rows cut by the token limit, in [0, 1]."""
    rows_with_unknown_ids: int = 0
    """Rows with ids that stand for no token: the policy's vocabulary is padded, and it samples
    from the padding."""

    def to_dict(self) -> dict[str, Any]:
        """All figures by name."""
        return asdict(self)


def fill(
    run: SamplingRun,
    out: str | Path,
    produce: Produce,
    *,
    progress: bool = False,
    flush_rows: int = FLUSH_ROWS,
    flush_seconds: float = FLUSH_SECONDS,
    on_failure: Callable[[Failure], None] | None = None,
) -> SamplingReport:
    """Make the completions of `run` that `out` does not hold yet.

    Args:
        out: rollout directory, which a run with the same settings goes on with; or .parquet file,
            which must not exist and appears when all is done.
        produce: the engine; not called when nothing is missing.
        progress: show throughput, share cut and remaining time on stderr.
        flush_rows, flush_seconds: how much work a kill may cost.
        on_failure: told of every failure as it happens.
    Raises:
        ValueError: `out` holds completions that this run would not make.
    """
    found = run.completed(out)
    counts = SamplingCounts(found, total=run.total)

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
            append=bool(found.keys),
            retokenized=run.retokenized,
            chat_template_args=run.chat_template_args,
        )
        with writer, ExitStack() as stack:
            results = produce(run.missing(found.keys), len(found.keys))
            stack.enter_context(_closing(results))
            started = time.monotonic()
            show = stack.enter_context(sampling_progress(counts, shown=progress))
            sink = _Sink(run, writer, found.keys, flush_rows, flush_seconds)
            stack.callback(sink.close)  # of an interrupted run too: what is sampled is kept
            for result in results:
                row = result if isinstance(result, Failure) else _row(run, result)
                if isinstance(row, Failure):
                    fail(row)
                else:
                    sink.add(row)
                    counts.add(row, unknown_ids=run.has_unknown_ids(row.response_ids))
                show()
    seconds = time.monotonic() - started
    return SamplingReport(
        rollouts=str(out),
        prompts=len(run.tasks),
        rows=counts.rows,
        rows_resumed=len(found.keys),
        rows_missing=run.total - counts.rows,
        failures=dict(counts.failures),
        tokens=counts.new_tokens,
        seconds=seconds,
        tokens_per_s=counts.new_tokens / seconds if counts.new_tokens else 0.0,
        completions_per_s=counts.new_rows / seconds if counts.new_rows else 0.0,
        mean_length=counts.tokens / counts.rows if counts.rows else 0.0,
        share_truncated=counts.share_truncated,
        rows_with_unknown_ids=counts.with_unknown_ids,
    )


def _row(run: SamplingRun, sample: Sample) -> Rollout | Failure:
    """A completion as a row, or why the file does not take it; the others are not concerned."""
    try:
        return run.row(sample)
    except Exception as error:  # an engine may return anything
        kind = getattr(error, "kind", None) or f"no row of a rollout file ({type(error).__name__})"
        return Failure(
            task=sample.task, sample_ids=[sample.sample_id], kind=kind, detail=str(error)
        )


def _closing(results: Any) -> Any:
    """Engines that are generators stop their work when the run ends, however it ends."""
    return closing(results) if hasattr(results, "close") else ExitStack()


class _Sink:
    """Rows on their way to disk.

    Completions are held until all of their prompt are there, so that they lie side by side. Short
    ones finish first: in that order neighbours in the file would have similar lengths, and neither
    the spread within prompts nor grouped batches could be read off it.
    """

    def __init__(
        self,
        run: SamplingRun,
        writer: RolloutWriter,
        done: set[Key],
        flush_rows: int,
        flush_seconds: float,
    ):
        self._writer = writer
        self._flush_rows, self._flush_seconds = flush_rows, flush_seconds
        present = Counter(prompt_id for prompt_id, _ in done)
        self._left = {task.prompt_id: task.n - present[task.prompt_id] for task in run.tasks}
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
        self._writer.append(rows)
        self._unsaved += len(rows)
