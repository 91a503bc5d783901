"""How do vLLM engines on many nodes make the completions of a run, through Ray Data?

Prompts are a Ray dataset, each engine an actor that maps batches of it, and this process writes
what comes back: one writer, so that the rule for going on after a kill is the same as everywhere.
Token ids are small (4 bytes a token), so one process keeps up with hundreds of engines. Ray starts
an actor that died again and gives it its batch again; a batch comes back whole and once.

Within a batch the engine stays full until its last completions, so batches should hold several
times as many completions as an engine runs at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from lenvm_rl.sampling.run import Failure, Sample, SamplingRun, Task
from lenvm_rl.vllm.offline import complete

_WORK = pa.schema(
    [
        ("task", pa.int64()),  # index of the task in the run
        ("prompt_ids", pa.list_(pa.int32())),
        ("sample_ids", pa.list_(pa.int64())),
        ("max_tokens", pa.int32()),
    ]
)
_DONE = pa.schema(
    [
        ("task", pa.int64()),
        ("sample_id", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("logprobs", pa.list_(pa.float32())),
        ("failure", pa.string()),  # kind, of a completion that could not be made
        ("detail", pa.string()),
    ]
)


class RayEngine:
    """An engine of `fill` that is many of vLLM's `LLM` on a Ray cluster.

    Args:
        run: what is sampled; without seeds of its own, see `sample_with_vllm`.
        start: called on a node as `start(seed=...)`; returns the `LLM`.
        engines: actors over all nodes.
        gpus_per_engine: GPUs that each needs.
        logprobs: keep log-probabilities.
        batch_size: completions of a batch.
        address: of the cluster; None finds a running one, or starts one here.
    """

    def __init__(
        self,
        run: SamplingRun,
        start: Callable[..., Any],
        *,
        engines: int,
        gpus_per_engine: int = 0,
        logprobs: bool = False,
        batch_size: int = 1024,
        address: str | None = None,
    ):
        assert not run.own_seeds, "engines on nodes have random streams of their own"
        self._run, self._start = run, start
        self._engines, self._gpus = engines, gpus_per_engine
        self._logprobs, self._batch_size, self._address = logprobs, batch_size, address

    def __call__(
        self, missing: Iterator[tuple[Task, int]], resumed: int
    ) -> Iterator[Sample | Failure]:
        """Hand out what is missing, and return completions batch by batch."""
        import ray
        import ray.data

        if not ray.is_initialized():
            ray.init(address=self._address, log_to_driver=False)
        index = {task.prompt_id: number for number, task in enumerate(self._run.tasks)}
        blocks = list(_blocks(missing, index, self._batch_size))
        done = ray.data.from_arrow(blocks).map_batches(
            RayWorker,
            fn_constructor_kwargs={
                "start": self._start,
                "sampling": self._run.sampling(self._run.tasks[0], 0),
                "logprobs": self._logprobs,
            },
            batch_size=None,  # a block is a batch
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self._engines),
            num_gpus=self._gpus or None,
        )
        return self._iterate(done)

    def _iterate(self, done: Any) -> Iterator[Sample | Failure]:
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in batch.to_pylist():
                task = self._run.tasks[row["task"]]
                if row["failure"]:
                    yield Failure(
                        task=task,
                        sample_ids=[row["sample_id"]],
                        kind=row["failure"],
                        detail=row["detail"],
                    )
                    continue
                yield Sample(
                    task=task,
                    sample_id=row["sample_id"],
                    token_ids=row["token_ids"],
                    finish_reason=row["finish_reason"],
                    logprobs=row["logprobs"],
                )


class RayWorker:
    """One engine on one node; Ray Data calls it with a batch at a time.

    Args:
        start: see `RayEngine`. The seed is drawn from the operating system: an actor that was
            started again must not repeat the random numbers of the one that died.
        sampling: temperature, top_p, top_k and min_p of all requests.
        logprobs: keep log-probabilities.
    """

    def __init__(self, start: Callable[..., Any], sampling: dict[str, Any], logprobs: bool):
        self._llm = start(seed=secrets.randbits(31))
        self._sampling, self._logprobs = sampling, logprobs

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Complete a batch of `_WORK`; gives one of `_DONE`."""
        results = complete(self._llm, self._work(batch), logprobs=self._logprobs, ahead=1 << 30)
        rows = [row for result in results for row in _done(result)]
        return pa.Table.from_pylist(rows, schema=_DONE)

    def _work(self, batch: pa.Table) -> Iterator[tuple[Task, int, dict[str, Any]]]:
        for row in batch.to_pylist():
            task = Task(
                prompt_id=str(row["task"]),
                prompt_ids=row["prompt_ids"],
                n=len(row["sample_ids"]),
                max_tokens=row["max_tokens"],
            )
            for sample_id in row["sample_ids"]:
                yield task, sample_id, {**self._sampling, "max_tokens": task.max_tokens}


def _blocks(
    missing: Iterator[tuple[Task, int]], index: dict[str, int], batch_size: int
) -> Iterator[pa.Table]:
    """What is missing in tables of at least `batch_size` completions (the last has the rest)."""
    rows: list[dict[str, Any]] = []
    held = 0
    for _, group in groupby(missing, key=lambda item: item[0].prompt_id):
        samples = list(group)
        task = samples[0][0]
        rows.append(
            {
                "task": index[task.prompt_id],
                "prompt_ids": task.prompt_ids,
                "sample_ids": [sample_id for _, sample_id in samples],
                "max_tokens": task.max_tokens,
            }
        )
        held += len(samples)
        if held >= batch_size:
            yield pa.Table.from_pylist(rows, schema=_WORK)
            rows, held = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, schema=_WORK)


def _done(result: Sample | Failure) -> Sequence[dict[str, Any]]:
    """Rows of `_DONE`; what is absent is null."""
    task = int(result.task.prompt_id)
    if isinstance(result, Failure):
        failed = {"task": task, "failure": result.kind, "detail": result.detail}
        return [{**failed, "sample_id": sample_id} for sample_id in result.sample_ids]
    return [
        {
            "task": task,
            "sample_id": result.sample_id,
            "token_ids": result.token_ids,
            "finish_reason": result.finish_reason,
            "logprobs": result.logprobs,
        }
    ]
