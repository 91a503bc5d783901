"""A trunk with the keys and values of many rows, and how its slots catch up with their histories.

The part that the scorers with a trunk of their own share: memory that is allocated once, forward
passes over tokens of several slots (`exact.attention`), and slots that rows open and close.

Slots get pages as their rows grow. Where none is free, those of rows that are not in this step are
taken, closed rows' first, from their ends: such a row lacks tokens when it comes back, and reads
them again. Rows of one step that do not fit together go one group after the other: slower, with the
same values. A row alone always fits.

A history may be any number of tokens ahead of its slot: a new prompt, steps without guidance, a
preempted row. Few tokens are run beside the step itself; many are copied from another slot that
holds them, or run in passes of bounded size, once where several rows lack the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.guidance.exact.attention import PREFIX_ATTENTION, Attends, Pass, Probe, Segment
from lenvm_rl.guidance.exact.cache import (
    ALIGN,
    KeyValueShape,
    KeyValueStore,
    SlotTable,
    common_prefix,
    to_device,
)
from lenvm_rl.guidance.exact.memory import ScorerMemory, available_memory
from lenvm_rl.guidance.interface import History
from lenvm_rl.model import LengthValueModel, ValueHead
from lenvm_rl.model.decoder import FOREIGN, attending_by


@dataclass
class ScorerStats:
    """What a scorer has done since it was made; tokens and rows, cumulative."""

    steps: int = 0
    """Calls of `score`."""
    rows: int = 0
    candidates: int = 0
    """Candidates run through the trunk."""
    committed: int = 0
    """Tokens whose keys and values were taken over from a candidate."""
    caught_up: int = 0
    """History tokens run beside the candidates of a step."""
    prefilled: int = 0
    """History tokens run in passes of their own."""
    reused: int = 0
    """Tokens that a newly opened slot held already."""
    copied: int = 0
    """Tokens copied from another slot."""
    passes: int = 0
    """Forward passes of the trunk."""
    evicted: int = 0
    """Pages taken from rows whose tokens they held."""


class CachedTrunk:
    """A LenVM's trunk with the keys and values of its rows' histories.

    Args:
        model: on its device, in the dtype to compute in. It is put in evaluation mode. While a
            pass runs, the trunk's configuration names this package's attention; it is put back
            afterwards, so the model stays usable elsewhere, though not in another thread meanwhile.
        slots: rows that can be open at once.
        max_length: longest history plus candidate in tokens.
        max_candidates: most candidates per row.
        spare: columns of a slot behind its longest history, for tokens that may not be kept.
        padding: whether the store has one more slot, which no row gets, with room for these.
        page: tokens of a page.
        memory: bytes that keys and values may take; None: what the device has left.
    Raises:
        ValueError: another head, a trunk whose state is not keys and values, a number out of
            range, or keys and values that do not fit.
    """

    _head = "state"  # the one this scorer reads

    def __init__(
        self,
        model: LengthValueModel,
        *,
        slots: int,
        max_length: int,
        max_candidates: int,
        spare: int,
        padding: bool = False,
        page: int = ALIGN,
        memory: int | None = None,
    ):
        if max_candidates < 1:
            raise ValueError(f"max_candidates must be at least 1, got {max_candidates}.")
        if model.config.head != self._head:
            raise ValueError(
                f"this LenVM has a {model.config.head!r} head, but {type(self).__name__} reads a "
                f"{self._head!r} head: use QHeadScorer for candidate heads, ExactScorer for others."
            )
        self.model, self.config, self.stats = model.eval(), model.config, ScorerStats()
        self._trunk = model.model
        check_trunk(self._trunk.config.get_text_config(), max_length)
        self.max_length, self.max_candidates = max_length, max_candidates
        self.device = next(model.parameters()).device
        self._table = SlotTable(slots, max_length)
        shapes = self._probe()
        self.memory = ScorerMemory(
            weights=sum(p.nbytes for p in model.parameters()),
            bytes_per_token=sum(shape.bytes for shape in shapes),
            spare=spare,
            page=page,
            padding_pages=-(-spare // page) if padding else 0,
        )
        room = self.memory.check(max_length, budget=memory, free=available_memory(self.device))
        self._store = KeyValueStore(
            shapes,
            slots=slots + padding,
            capacity=self.memory.columns(max_length),
            device=self.device,
            page=page,
            pages=self.memory.pages(slots, max_length, room=room),
        )
        if padding:
            self._store.grow(slots, spare)
        self._rows_pages = self._store.free
        self._spare = spare

    @property
    def head(self) -> ValueHead:
        """The LenVM's own layers on top of the trunk."""
        return self.model.score

    @property
    def cache_bytes(self) -> int:
        """Memory of all pages, allocated at the start."""
        return self._store.bytes

    @property
    def in_use(self) -> int:
        """Open slots."""
        return self._table.in_use

    def open(self, history: History) -> int:
        """Claim a slot; raises PoolExhausted, or ValueError for a history that cannot fit."""
        self._check_length(history)
        slot, reused = self._table.claim(history.tail(0))
        self.stats.reused += reused
        return slot

    def close(self, slot: int) -> None:
        """Free a slot and keep its content."""
        self._check_open(slot)
        self._table.free(slot)

    @property
    def pages(self) -> tuple[int, int]:
        """Pages that hold tokens of rows, open or not, and all that rows can have."""
        return self._rows_pages - self._store.free, self._rows_pages

    # --- pages -----------------------------------------------------------------------------

    def _groups(self, histories: Sequence[History], spare: int) -> list[list[int]]:
        """Rows that are run together, by their index: as many as there are pages for."""
        groups: list[list[int]] = [[]]
        left = self._rows_pages
        for i, history in enumerate(histories):
            need = self._store.pages_of(len(history) + spare)
            if need > left and groups[-1]:
                groups.append([])
                left = self._rows_pages
            groups[-1].append(i)
            left -= need
        return groups

    def _make_room(self, slots: Sequence[int], histories: Sequence[History], spare: int) -> None:
        """Pages for all of these rows, and `spare` columns behind each."""
        columns = [len(history) + spare for history in histories]
        need = sum(map(self._store.lacking, slots, columns)) - self._store.free
        self._table.touch(slots)
        wanted = dict(zip(slots, map(self._store.pages_of, columns), strict=True))
        if need > 0:  # first what the rows themselves have too many, from other rows before them
            for victim in [*slots, *self._table.idle(wanted.keys())]:
                pages = min(int(self._store.held[victim]) - wanted.get(victim, 0), need)
                if pages > 0:
                    self._evict(victim, pages)
                    need -= pages
        for slot, count in zip(slots, columns, strict=True):
            self._store.grow(slot, count)

    def _evict(self, slot: int, pages: int) -> None:
        """Take the last pages of a slot, and what they hold."""
        before = self._store.pages_of(int(self._table.lengths[slot]))
        kept = self._store.shrink(slot, pages)
        self._table.cut(slot, kept)
        self.stats.evicted += max(before - int(self._store.held[slot]), 0)

    # --- passes ----------------------------------------------------------------------------

    def _forward(self, ids: Tensor, step: Pass) -> Tensor:
        """[T] ids -> [T, hidden size], the last hidden states."""
        self.stats.passes += 1
        return self._run_trunk(ids, step.position, step)

    def _run_trunk(self, ids: Tensor, position: Tensor, step: Attends) -> Tensor:
        with attending_by(self._trunk.config, PREFIX_ATTENTION):
            output = self._trunk(
                input_ids=ids[None], position_ids=position[None], use_cache=False, lenvm_pass=step
            )
        return output.last_hidden_state[0]

    @torch.inference_mode()
    def _probe(self) -> list[KeyValueShape]:
        """What each layer keeps of a token, seen in a forward pass over one token."""
        probe = Probe()
        zero = torch.zeros(1, dtype=torch.long, device=self.device)
        try:
            self._run_trunk(zero, zero, probe)
        except ValueError:
            raise
        except FOREIGN as error:
            raise ValueError(
                f"{type(self._trunk).__name__} cannot attend to cached tokens here "
                f"({type(error).__name__}: {error}): put the LenVM on another trunk, e.g. Qwen or "
                "Llama."
            ) from error
        shapes = [shape for _, shape in sorted(probe.shapes.items())]
        layers = self._trunk.config.get_text_config().num_hidden_layers
        if len(shapes) != layers or len(set(shapes)) != 1:
            raise ValueError(
                f"{len(shapes)} of the {layers} layers of {type(self._trunk).__name__} keep keys "
                f"and values, of {len(set(shapes))} shapes: the exact scorer needs all layers to "
                "keep them, in one shape. Put the LenVM on another trunk, e.g. Qwen or Llama."
            )
        return shapes

    # --- checks ----------------------------------------------------------------------------

    def _check_step(self, slots, histories, candidates: Tensor, mask: Tensor) -> None:
        if candidates.dim() != 2 or candidates.shape != mask.shape:
            raise ValueError(
                f"candidates and mask must both be [R, K], got {tuple(candidates.shape)} and "
                f"{tuple(mask.shape)}."
            )
        rows, width = candidates.shape
        if not rows == len(slots) == len(histories) == len(set(slots)):
            raise ValueError(
                f"{rows} rows of candidates, {len(slots)} slots ({len(set(slots))} different) and "
                f"{len(histories)} histories: every row needs one of each."
            )
        if width > self.max_candidates:
            raise ValueError(
                f"{width} candidates per row, but the scorer was built for {self.max_candidates}: "
                "lower top_k, or build it with a larger max_candidates."
            )
        for slot, history in zip(slots, histories, strict=True):
            self._check_open(slot)
            self._check_length(history)
            if len(history) < self._table.lengths[slot]:
                raise ValueError(
                    f"the history in slot {slot} has {len(history)} tokens, fewer than the "
                    f"{self._table.lengths[slot]} seen: histories only grow. Close the slot and "
                    "open it anew after taking tokens back."
                )

    def _check_open(self, slot: int) -> None:
        if not self._table.is_open(slot):
            raise ValueError(f"slot {slot} is not open: call open(history) first, close() once.")

    def _check_length(self, history: History) -> None:
        if len(history) + 1 > self.max_length:
            raise ValueError(
                f"a history of {len(history)} tokens and a candidate do not fit into max_length "
                f"{self.max_length}: build the scorer with the engine's longest sequence."
            )

    def _check_ids(self, ids: np.ndarray) -> None:
        size = self.config.vocab_size
        if len(ids) and (ids.min() < 0 or ids.max() >= size):
            worst = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise ValueError(
                f"token id {worst} is outside the LenVM's vocabulary of {size}: it was trained for "
                "another tokenizer. Use a LenVM of this policy."
            )


def check_trunk(config: Any, max_length: int) -> None:
    """Refuse a trunk (ValueError) whose keys cannot be kept, or not for sequences this long."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    others = sorted(kinds - {"full_attention", "sliding_attention"})
    if others:
        raise ValueError(
            f"{type(config).__name__} has layers of kind {', '.join(others)}, whose state is not "
            "keys and values of each token: put the LenVM on a trunk with attention in every layer."
        )
    context = getattr(config, "max_position_embeddings", None) or max_length
    if max_length > context:
        raise ValueError(
            f"max_length {max_length} is longer than the LenVM's context of {context} tokens: "
            "serve shorter sequences, or train the LenVM on a trunk with a longer context."
        )
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or context
    if rope.get("rope_type") in ("dynamic", "longrope") and max_length > original:
        raise ValueError(
            f"rope type {rope['rope_type']!r} turns earlier keys anew beyond {original} tokens, so "
            f"they cannot be kept; max_length is {max_length}. Serve at most {original} tokens."
        )


_WORTH_COPYING = 16  # shared tokens; for fewer, waiting for another row's prompt does not pay


@dataclass
class HistoryRow:
    """One row of a step, in the order of the slots."""

    index: int
    slot: int
    history: History
    missing: list[int] = field(default_factory=list)
    """Tokens of the history that the slot lacks."""


class HistoryTrunk(CachedTrunk):
    """A cached trunk whose slots catch up with the histories of their rows.

    Args:
        chunk_tokens: most tokens per pass over prompts; bounds the memory of activations.
        others: see `CachedTrunk`.
    Raises:
        ValueError: see `CachedTrunk`.
    """

    _inline_tokens = 16  # a row that lacks more of its history is caught up in passes of its own

    def __init__(self, model: LengthValueModel, *, chunk_tokens: int, **others: Any):
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}.")
        super().__init__(model, **others)
        self.chunk_tokens = chunk_tokens

    def _rows(self, slots: Sequence[int], histories: Sequence[History]) -> list[HistoryRow]:
        """The rows of a step by slot: neighbours in the store are read together."""
        rows = zip(slots, histories, strict=True)
        found = [HistoryRow(index, slot, history) for index, (slot, history) in enumerate(rows)]
        return sorted(found, key=lambda row: row.slot)

    def _read_histories(self, rows: list[HistoryRow]) -> None:
        for row in rows:
            row.missing = row.history.tail(int(self._table.lengths[row.slot]))
        self._check_ids(np.array([x for row in rows for x in row.missing], dtype=np.int64))

    def _catch_up(self, rows: list[HistoryRow], *, leave: int = 0) -> None:
        """Fill the slots of rows that lack much of their history: from other slots where those
        hold it, once where several rows lack the same, in passes of bounded size. The last
        `leave` tokens are left to the step itself."""
        if leave:
            kept = [row.missing[-leave:] for row in rows]
            for row in rows:
                row.missing = row.missing[:-leave]
            self._catch_up(rows)
            for row, last in zip(rows, kept, strict=True):
                row.missing += last
            return
        waiting = [row for row in rows if len(row.missing) > self._inline_tokens]
        tokens = {row.slot: self._wanted(row) for row in waiting}
        while waiting:
            first, later = [], []
            for row in waiting:
                self._copy_shared(row, tokens[row.slot])
                alone = len(tokens[row.slot]) - len(row.missing) + _WORTH_COPYING
                alike = any(
                    common_prefix(tokens[row.slot], tokens[other.slot]) >= alone for other in first
                )
                (later if alike else first).append(row)
            self._prefill([row for row in first if len(row.missing) > self._inline_tokens])
            waiting = later

    def _wanted(self, row: HistoryRow) -> np.ndarray:
        """The tokens that the slot shall hold: those it has and those that are missing."""
        size = int(self._table.lengths[row.slot]) + len(row.missing)
        return np.array(row.history.tail(0)[:size], dtype=np.int32)

    def _copy_shared(self, row: HistoryRow, tokens: np.ndarray) -> None:
        start = len(tokens) - len(row.missing)
        source, shared = self._table.longest_prefix(tokens, but=row.slot)
        if shared - start >= _WORTH_COPYING:
            self._store.copy(source, row.slot, start, shared)
            self._table.append(row.slot, tokens[start:shared])
            row.missing = tokens[shared:].tolist()
            self.stats.copied += shared - start

    def _prefill(self, rows: list[HistoryRow]) -> None:
        for pieces in self._chunks(rows):
            segments = [
                Segment(row.slot, int(self._table.lengths[row.slot]), len(piece), 0)
                for row, piece in pieces
            ]
            ids = np.concatenate([piece for _, piece in pieces])
            self._forward(to_device(ids, self.device), Pass(self._store, segments))
            for row, piece in pieces:
                self._table.append(row.slot, piece)
                row.missing = row.missing[len(piece) :]
            self.stats.prefilled += len(ids)

    def _chunks(self, rows: list[HistoryRow]) -> Iterator[list[tuple[HistoryRow, list[int]]]]:
        """What the rows lack, in pieces of at most `chunk_tokens` together, rows in order."""
        pieces, room = [], self.chunk_tokens
        for row in rows:
            start, missing = 0, row.missing
            while start < len(missing):
                piece = missing[start : start + room]
                pieces.append((row, piece))
                start += len(piece)
                room -= len(piece)
                if not room:
                    yield pieces
                    pieces, room = [], self.chunk_tokens
        if pieces:
            yield pieces
