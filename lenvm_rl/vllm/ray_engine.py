"""Engines of vLLM on many nodes, through Ray Data.

Prompts are a Ray dataset, each engine an actor that maps batches of it, and this process writes
what comes back: one writer, so that the rule for going on after a kill is the same as everywhere.
Token ids are small (4 bytes a token), so one process keeps up with hundreds of engines. Ray starts
an actor that died again and gives it its batch again; a batch comes back whole and once.

Within a batch the engine stays full until its last completions, so batches should hold several
times as many completions as an engine runs at once.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import pyarrow as pa

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.rollouts.record import Rollout
from lenvm_rl.sampling.run import EngineFacts, Failure, Request, Task
from lenvm_rl.vllm.offline import AHEAD, complete

_WORK = pa.schema(
    [
        ("prompt", pa.int64()),  # number of the prompt among those asked for
        ("prompt_ids", pa.list_(pa.int32())),
        ("sample_ids", pa.list_(pa.int64())),
        ("asked", pa.string()),  # JSON: sampling, and the `lenvm_` arguments of its guidance
    ]
)
_DONE = pa.schema(
    [
        ("prompt", pa.int64()),
        ("sample_id", pa.int64()),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("response_logprobs", pa.list_(pa.float32())),
        ("failure", pa.string()),  # kind, of a completion that could not be made
        ("detail", pa.string()),
    ]
)


class RayEngine:
    """An `Engine` that is many of vLLM's `LLM` on a Ray cluster.

    Args:
        start: called on a node as `start(seed=...)`; returns the `LLM`.
        facts: of the policy; engines on nodes have random streams of their own.
        engines: actors over all nodes.
        gpus_per_engine: GPUs that each needs.
        logprobs: keep log-probabilities.
        batch_size: completions of a batch.
        address: of the cluster; None finds a running one, or starts one here.
    """

    def __init__(
        self,
        start: Callable[..., Any],
        facts: EngineFacts,
        *,
        engines: int,
        gpus_per_engine: int = 0,
        logprobs: bool = False,
        batch_size: int = AHEAD,
        address: str | None = None,
    ):
        assert not facts.own_seeds, "samples of a prompt are asked for together"
        self.facts = facts
        self._start = start
        self._engines, self._gpus = engines, gpus_per_engine
        self._logprobs, self._batch_size, self._address = logprobs, batch_size, address

    def __call__(self, requests: Iterator[Request], resumed: int) -> Iterator[Rollout | Failure]:
        """Hand out what is missing, and return completions batch by batch."""
        import ray
        import ray.data

        if not ray.is_initialized():
            ray.init(address=self._address, log_to_driver=False)
        prompts: list[Request] = []
        blocks = list(work_blocks(requests, prompts, self._batch_size))
        done = ray.data.from_arrow(blocks).map_batches(
            RayWorker,
            fn_constructor_kwargs={"start": self._start, "logprobs": self._logprobs},
            batch_size=None,  # a block is a batch
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self._engines),
            num_gpus=self._gpus or None,
        )
        return results(done, prompts)


def results(done: Any, prompts: Sequence[Request]) -> Iterator[Rollout | Failure]:
    """Rows of a Ray dataset of `_DONE`; see `work_blocks` for `prompts`."""
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            request = replace(prompts[row["prompt"]], sample_id=row["sample_id"])
            if row["failure"]:
                yield request.failure(row["failure"], row["detail"])
            else:
                yield request.rollout(
                    row["response_ids"], row["finish_reason"], row["response_logprobs"]
                )


class RayWorker:
    """One engine on one node; Ray Data calls it with a batch at a time.

    Args:
        start: see `RayEngine`. The seed is drawn from the operating system: an actor that was
            started again must not repeat the random numbers of the one that died.
        logprobs: keep log-probabilities.
    """

    def __init__(self, start: Callable[..., Any], logprobs: bool):
        self._llm = start(seed=secrets.randbits(31))
        self._logprobs = logprobs

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Complete a batch of `_WORK`; gives one of `_DONE`."""
        results = complete(self._llm, _requests(batch), logprobs=self._logprobs, ahead=1 << 30)
        rows = [row for result in results for row in _done(result)]
        return pa.Table.from_pylist(rows, schema=_DONE)


def work_blocks(
    requests: Iterator[Request], prompts: list[Request], batch_size: int
) -> Iterator[pa.Table]:
    """Requests in tables of at least `batch_size` completions (the last has the rest); `prompts`
    gets one request of each prompt, which says what its samples have in common."""
    rows: list[dict[str, Any]] = []
    held = 0
    for _, group in groupby(requests, key=lambda request: request.task.prompt_id):
        samples = list(group)
        one = samples[0]
        guidance = one.guidance and one.guidance.to_args()
        rows.append(
            {
                "prompt": len(prompts),
                "prompt_ids": one.task.prompt_ids,
                "sample_ids": [request.sample_id for request in samples],
                "asked": json.dumps({"sampling": dict(one.sampling), "guidance": guidance}),
            }
        )
        prompts.append(one)
        held += len(samples)
        if held >= batch_size:
            yield pa.Table.from_pylist(rows, schema=_WORK)
            rows, held = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, schema=_WORK)


def _requests(batch: pa.Table) -> Iterator[Request]:
    """What a batch of `_WORK` asks for; the prompt's number is its name."""
    for row in batch.to_pylist():
        asked = json.loads(row["asked"])
        task = Task(
            prompt_id=str(row["prompt"]),
            prompt_ids=row["prompt_ids"],
            n=len(row["sample_ids"]),
            max_tokens=asked["sampling"]["max_tokens"],
        )
        guidance = GuidanceSettings.from_args(asked["guidance"])
        for sample_id in row["sample_ids"]:
            yield Request(
                task=task, sample_id=sample_id, sampling=asked["sampling"], guidance=guidance
            )


def _done(result: Rollout | Failure) -> Sequence[dict[str, Any]]:
    """Rows of `_DONE`; what is absent is null."""
    if isinstance(result, Failure):
        failed = {"failure": result.kind, "detail": result.detail}
        prompt = int(result.task.prompt_id)
        return [{"prompt": prompt, **failed, "sample_id": k} for k in result.sample_ids]
    names = ("sample_id", "response_ids", "finish_reason", "response_logprobs")
    return [{"prompt": int(result.prompt_id), **{n: getattr(result, n) for n in names}}]
