"""Decoding steps of fixed shape, rows and candidates padded, replayed as graphs on CUDA.

Experimental: tested on a CPU and on devices without content; not yet run on a GPU.

Every row holds its whole history; its K candidates stand behind it, at one position. All shapes
follow from a `Bucket`, all inputs lie in buffers that stay where they are, and nothing asks for the
content of a tensor: there is no Python and no launch of a kernel inside a step that is replayed.
Padding rows write to a slot that belongs to no row, and see themselves alone.

The prefix is read by a kernel that returns its log-sum-exp (`exact.prefix_kernels`), in pieces side
by side where few rows would leave the device idle; the candidate's own term is merged in. The
kernel is not used in layers with a sliding window shorter than the step's span, nor without one:
there the whole span is read by `scaled_dot_product_attention` under a mask.

A graph is captured once per bucket, before the first request where the candidates of a row are
known then (`FixedSteps.prepare`), else when the bucket is first met. All graphs share one pool of
memory, and there are at most MAX_GRAPHS of them; steps of further buckets run without. Where a
capture fails, the stream is put back, no other is tried, and a line in the log says why: steps run
without, slower. Shapes and buffers are the same either way, and so are the results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lenvm_rl.guidance.exact.cache import KeyValueStore, to_device
from lenvm_rl.guidance.exact.prefix_kernels import PAGE, Prefixes, PrefixKernel, merge_attention


class Bucket(NamedTuple):
    """Shapes of a step."""

    rows: int
    candidates: int
    span: int
    """Columns that a prefix may have; a whole number of pages."""


def bucket_of(
    rows: int, candidates: int, longest: int, *, slots: int, max_candidates: int, capacity: int
) -> Bucket:
    """The smallest bucket that holds a step: powers of two of rows, eights of candidates, powers of
    four of pages (a kernel reads what a prefix uses, not its span).

    Args:
        rows, candidates, longest: of the step; `longest` is the longest prefix in tokens.
        slots, max_candidates, capacity: what no bucket need exceed.
    """
    span = PAGE
    while span < longest:
        span *= 4
    return Bucket(
        min(_power_of_two(rows), slots),
        min(-(-candidates // 8) * 8, max_candidates),
        min(span, capacity),
    )


def buckets_of(candidates: int, *, slots: int, max_candidates: int, capacity: int) -> list[Bucket]:
    """All buckets of steps with so many candidates, short spans first and few rows first."""
    limits = {"slots": slots, "max_candidates": max_candidates, "capacity": capacity}
    spans, rows = [1], [1]
    while spans[-1] < capacity:
        spans.append(min(bucket_of(1, 1, spans[-1], **limits).span + 1, capacity))
    while rows[-1] < slots:
        rows.append(min(2 * rows[-1], slots))
    found = [bucket_of(r, candidates, longest, **limits) for longest in spans for r in rows]
    return list(dict.fromkeys(found))


def pieces_of(bucket: Bucket, heads: int, processors: int) -> int:
    """Into how many pieces to cut each prefix, so that there is one for each processor of the
    device, if pages allow: a power of two that divides the pages, or 1."""
    pages, pieces = bucket.span // PAGE, 1
    while pages % (2 * pieces) == 0 and 2 * pieces * bucket.rows * heads <= processors:
        pieces *= 2
    return pieces


class StepInputs:
    """Buffers that hold a step's inputs; the rows behind those in use are padding.

    Args:
        padding_slot: what padding rows write to.
    """

    def __init__(self, bucket: Bucket, padding_slot: int, device: torch.device):
        self.bucket, self.padding_slot = bucket, padding_slot
        self.ids = torch.zeros(bucket[:2], dtype=torch.long, device=device)
        """[R, K]"""
        self.places = torch.zeros(2, bucket.rows, dtype=torch.long, device=device)
        """[2, R] slot and length of each row."""
        self.places[0] = padding_slot

    def load(self, candidates: Tensor, places: Tensor) -> None:
        """Take over [r, k] candidates and [2, R] slots and lengths, padded already."""
        rows, width = candidates.shape
        self.ids.zero_()
        self.ids[:rows, :width].copy_(candidates)
        self.places.copy_(places, non_blocking=True)


class FixedPass:
    """One step's attention; stands where `attention.Pass` does.

    Attributes:
        position: [R K] position of each candidate in its sequence.
    """

    def __init__(
        self,
        store: KeyValueStore,
        inputs: StepInputs,
        kernel: PrefixKernel | None,
        pieces: int = 1,
    ):
        self._store, self._bucket, self._kernel, self._pieces = store, inputs.bucket, kernel, pieces
        self._slot, self._length = inputs.places.unbind()
        rows, candidates, _ = self._bucket
        column = self._length[:, None] + torch.arange(candidates, device=self._length.device)
        self._column = column  # [R, K]
        self._pages = store.on_device().index_select(0, self._slot)  # [R, C / G]
        page = self._pages.gather(1, column // store.page)
        self._cell = (page * store.page + column % store.page).flatten()
        self.position = self._length[:, None].expand(rows, candidates).flatten()
        self._masks: dict[int | None, Tensor] = {}
        self._prefixes: Prefixes | None = None

    def attend(self, layer, query, key, value, *, scaling, window) -> Tensor:
        """[1, G H, T, D] queries, [1, H, T, D] keys and values -> [T, G H, D]."""
        keys, values = self._store.keys[layer], self._store.values[layer]
        own = key[0].transpose(0, 1).to(keys.dtype), value[0].transpose(0, 1).to(values.dtype)
        keys.index_copy_(0, self._cell, own[0])
        values.index_copy_(0, self._cell, own[1])
        queries = query[0].transpose(0, 1).to(keys.dtype)  # [T, G H, D]
        rows, candidates, span = self._bucket
        heads = keys.shape[1]
        grouped = queries.view(rows, candidates, heads, -1, queries.shape[-1])
        scale = queries.shape[-1] ** -0.5 if scaling is None else scaling
        if self._kernel is None or (window is not None and window <= span):
            output = self._by_mask(layer, grouped, scale, window)
        else:
            output = self._by_kernel(layer, grouped, own, scale)
        return output.flatten(0, 1).flatten(1, 2).to(queries.dtype)

    # --- prefix by a kernel, oneself by merging --------------------------------------------------

    def _by_kernel(self, layer: int, grouped: Tensor, own, scale: float) -> Tensor:
        """[R, K, H, G, D] -> the same; query heads become queries, keys are read once for all."""
        assert self._kernel is not None
        rows, candidates, heads, groups, dim = grouped.shape
        if self._prefixes is None:
            self._prefixes = self._lay_out(candidates * groups)
        flat = grouped.permute(0, 1, 3, 2, 4).reshape(rows, candidates * groups, heads, dim)
        flat = flat[:, None].expand(-1, self._pieces, -1, -1, -1).reshape(-1, heads, dim)
        keys, values = self._store.keys[layer], self._store.values[layer]
        output, lse = self._kernel(flat, keys, values, self._prefixes, scale)
        shape = (rows, self._pieces, candidates, groups, heads)
        outputs = output.view(*shape, -1).transpose(0, 1)  # [pieces, R, K, G, H, D]
        lses = lse.reshape(shape).transpose(0, 1).float()
        own_key, own_value = (x.view(rows, candidates, 1, heads, -1) for x in own)
        queries = grouped.transpose(2, 3).float()  # [R, K, G, H, D]
        own_lse = (queries * own_key.float()).sum(-1) * scale
        own_output = own_value.to(outputs.dtype).expand(-1, -1, groups, -1, -1)
        merged, _ = merge_attention(
            torch.cat([outputs, own_output[None]]), torch.cat([lses, own_lse[None]])
        )
        return merged.transpose(2, 3)

    def _lay_out(self, queries: int) -> Prefixes:
        rows, _, span = self._bucket
        device = self._length.device
        size = span // self._pieces  # columns of a piece, whole pages
        columns = torch.arange(self._pieces, device=device) * size
        used = (self._length[:, None] - columns).clamp(0, size)
        count = rows * self._pieces
        pages = self._pages[:, : span // PAGE].reshape(count, size // PAGE)
        return Prefixes(
            cu_queries=torch.arange(count + 1, dtype=torch.int32, device=device) * queries,
            pages=pages.to(torch.int32),
            used=used.flatten().to(torch.int32),
            max_queries=queries,
            max_keys=size,
        )

    # --- everything under a mask -----------------------------------------------------------------

    def _by_mask(self, layer: int, grouped: Tensor, scale: float, window: int | None) -> Tensor:
        rows, candidates, heads, groups, dim = grouped.shape
        pages = self._pages[:, : self._columns // self._store.page]
        keys, values = (x.transpose(1, 2) for x in self._store.gather(layer, pages))
        output = F.scaled_dot_product_attention(
            grouped.permute(0, 2, 3, 1, 4).reshape(rows, heads, groups * candidates, dim),
            keys,
            values,
            attn_mask=self._mask(window).repeat(1, 1, groups, 1),
            scale=scale,
        )
        return output.unflatten(2, (groups, candidates)).permute(0, 3, 1, 2, 4)

    @property
    def _columns(self) -> int:
        """Columns read: the span, and room for the candidates behind it."""
        behind = PAGE * -(-self._bucket.candidates // PAGE)
        return min(self._bucket.span + behind, self._store.capacity)

    def _mask(self, window: int | None) -> Tensor:
        """[R, 1, K, columns], added to the scores."""
        if window not in self._masks:
            columns = torch.arange(self._columns, device=self._length.device)
            position = self._length[:, None, None]
            unseen = (columns >= position) & (columns != self._column[:, :, None])
            if window is not None:  # a position sees `window` tokens, itself included
                unseen = unseen | (columns <= position - window)
            mask = torch.zeros(unseen.shape, dtype=self._store.dtype, device=columns.device)
            self._masks[window] = mask.masked_fill(unseen, -torch.inf)[:, None]
        return self._masks[window]


def _power_of_two(n: int) -> int:
    """The smallest one that is at least n >= 1."""
    return 1 << (n - 1).bit_length()


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
    """[R, K] or [R, K, B], written by the graph."""


class FixedSteps:
    """Steps of all buckets of one scorer.

    Args:
        score: [R K] ids and the step's attention -> [R K] logits, or [R K, B]; a pure function of
            its inputs and of the store, to whose slots it writes behind what they hold.
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
        """Logits of candidates, [r, k] -> [r, k] float32, or outputs [r, k, B].

        Args:
            candidates: ids, all of them within the vocabulary.
            places: [2, r] slots and lengths of the rows.
        """
        rows, width = candidates.shape
        bucket = bucket_of(rows, width, int(places[1].max()), **self._limits)
        step = self._step(bucket)
        self._store.on_device()  # a graph reads it where it is
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
        """[R, K] or [R, K, B] from what the buffers hold."""
        heads = self._store.keys.shape[2]
        pieces = pieces_of(inputs.bucket, heads, self._processors)
        step = FixedPass(self._store, inputs, self._kernel, pieces)
        flat = self._score(inputs.ids.flatten(), step)
        return flat.view(*inputs.bucket[:2], *flat.shape[1:])

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
