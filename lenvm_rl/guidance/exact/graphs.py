"""How is a step of fixed shape run again and again? On CUDA as a graph, elsewhere as it is.

A graph is captured once per bucket of shapes (`fixed_step.Bucket`), before the first request where
the candidates of a row are known then (`FixedSteps.prepare`), else when the bucket is first met,
and replayed from then on: one launch for the whole trunk. All graphs share one pool of memory, and
there are at most MAX_GRAPHS of them; steps of further buckets run without. Where a capture fails,
the stream is put back, no other is tried, and a line in the log says why: steps run without,
slower. Shapes and buffers are the same either way, and so are the results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.guidance.exact.fixed_step import (
    Bucket,
    FixedPass,
    StepInputs,
    bucket_of,
    buckets_of,
    pieces_of,
)
from lenvm_rl.guidance.exact.key_values import KeyValueStore, to_device
from lenvm_rl.guidance.exact.prefix_kernels import PrefixKernel

_WARM_UP = 2  # runs before a capture: libraries choose and allocate in the first ones
MAX_GRAPHS = 64
"""A graph takes some megabytes and its capture some tenths of a second."""

logger = logging.getLogger("lenvm_rl.guidance")


@dataclass
class _Captured:
    inputs: StepInputs
    graph: Any = None
    """torch.cuda.CUDAGraph; None where steps run without."""
    output: Tensor | None = None
    """[R, K], written by the graph."""


class FixedSteps:
    """Steps of all buckets of one scorer.

    Args:
        score: [R K] ids and the step's attention -> [R K] logits; a pure function of its inputs
            and of the store, to whose slots it writes behind what they hold.
        store: keys and values; its last slot belongs to no row.
        kernel: reads prefixes; None: `scaled_dot_product_attention` does.
        max_candidates: most candidates of a row.
        processors: how many pieces of prefixes can be read side by side; None: the device's own.
    """

    def __init__(
        self,
        score: Callable[[Tensor, FixedPass], Tensor],
        store: KeyValueStore,
        *,
        kernel: PrefixKernel | None,
        max_candidates: int,
        processors: int | None = None,
    ):
        self._score, self._store, self._kernel = score, store, kernel
        self._limits = {
            "slots": store.slots - 1,
            "max_candidates": max_candidates,
            "capacity": store.capacity,
        }
        self._steps: dict[Bucket, _Captured] = {}
        self._captures = store.device.type == "cuda"
        self._pool: Any = None
        self._processors = processors or _processors_of(store.device)

    def run(self, candidates: Tensor, places: np.ndarray) -> Tensor:
        """Logits of candidates, [r, k] -> [r, k] float32.

        Args:
            candidates: ids, all of them within the vocabulary.
            places: [2, r] slots and lengths of the rows.
        """
        rows, width = candidates.shape
        bucket = bucket_of(rows, width, int(places[1].max()), **self._limits)
        step = self._step(bucket)
        step.inputs.load(candidates, self._padded(places, bucket))
        if step.graph is None and self._may_capture:
            self._capture(step)
        if step.graph is None:
            return self._compute(step.inputs)[:rows, :width]
        step.graph.replay()
        assert step.output is not None
        return step.output[:rows, :width].clone()  # the next replay writes over it

    @torch.inference_mode()
    def prepare(self, candidates: int) -> int:
        """Capture the steps of so many candidates per row, few rows and short spans first, before
        anybody waits for them. Returns how many graphs there are; 0 where none can be captured."""
        for bucket in buckets_of(candidates, **self._limits):
            if self._may_capture:
                self._capture(self._step(bucket))
        return self.graphs

    def _step(self, bucket: Bucket) -> _Captured:
        if bucket not in self._steps:
            padding = self._store.slots - 1
            self._steps[bucket] = _Captured(StepInputs(bucket, padding, self._store.device))
        return self._steps[bucket]

    @property
    def graphs(self) -> int:
        """How many steps are replayed."""
        return sum(step.graph is not None for step in self._steps.values())

    @property
    def _may_capture(self) -> bool:
        return self._captures and self.graphs < MAX_GRAPHS

    def _padded(self, places: np.ndarray, bucket: Bucket) -> Tensor:
        padded = np.zeros((2, bucket.rows), dtype=np.int64)
        padded[0] = self._store.slots - 1
        padded[:, : places.shape[1]] = places
        return to_device(padded, self._store.device)

    def _compute(self, inputs: StepInputs) -> Tensor:
        """[R, K] from what the buffers hold."""
        heads = self._store.keys.shape[2]
        pieces = pieces_of(inputs.bucket, heads, self._processors)
        step = FixedPass(self._store, inputs, self._kernel, pieces)
        return self._score(inputs.ids.flatten(), step).view(inputs.bucket[:2])

    def _capture(self, step: _Captured) -> None:
        """Capture the step; what it computes is the same however often it runs.

        Other threads may use the device meanwhile ("thread_local"): an engine has some that do.
        """
        before = torch.cuda.current_stream(self._store.device)
        try:
            side = torch.cuda.Stream(self._store.device)
            side.wait_stream(before)
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._compute(step.inputs)
            before.wait_stream(side)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step.output = self._compute(step.inputs)
            step.graph = graph
        except RuntimeError as error:
            self._captures, step.output = False, None
            logger.warning(
                "further steps of the LenVM run without CUDA graphs, slower: a capture failed (%s)",
                error,
            )
        finally:
            # torch leaves its capture stream current where ending a capture fails, and what runs
            # there is not ordered with the engine's own work.
            torch.cuda.set_stream(before)


def _processors_of(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
