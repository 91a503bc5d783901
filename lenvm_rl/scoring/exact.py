"""The LenVM's own value of every candidate, with one forward pass per step.

    z_k = head(trunk(history, x_k)),   k = 1..K

The keys and values of every history stay in a slot. A step runs the trunk over the candidates of
all rows at once, each seeing its row's history and itself (`scoring.attention`); when the engine
then samples one of them, its keys and values are moved to the end of the history, where they are
exactly what a pass over the sampled token would have written. Nothing is computed twice: not the
sampled token, not a prompt that another slot holds, not what a preempted row had computed.

Values equal those of a full recompute up to rounding (about 1e-6 in float32) in every dtype's own
precision. On a CPU masked candidates are dropped from the pass; on an accelerator, where dropping
them would mean to wait for the mask, they are computed and zeroed. There the host waits for
nothing but the ids of the last step's candidates, which have arrived when it knows a sampled
token. The accelerator path has been run on a CPU only: its speed is not known yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.decoder import attending_by
from lenvm_rl.scoring.attention import (
    PREFIX_ATTENTION,
    KeyValueShape,
    KeyValueStore,
    Pass,
    Probe,
    Segment,
    check_trunk,
    to_device,
)
from lenvm_rl.scoring.interface import History
from lenvm_rl.scoring.slots import LateRead, Siblings, SlotTable, common_prefix

_WORTH_COPYING = 16  # shared tokens; for fewer, waiting for another row's prompt does not pay


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


@dataclass
class HistoryRow:
    """One row of a step, in the order of the slots."""

    index: int
    slot: int
    history: History
    missing: list[int] = field(default_factory=list)
    """Tokens of the history that the slot lacks."""


class ExactScorer:
    """Values candidates by running the LenVM on them; see `interface.CandidateScorer`.

    Args:
        model: on its device, in the dtype to compute in. It is put in evaluation mode. While a
            pass runs, the trunk's configuration names this module's attention; it is put back
            afterwards, so the model stays usable elsewhere, though not in another thread meanwhile.
        slots: rows that can be open at once.
        max_length: longest history plus candidate in tokens.
        max_candidates: most candidates per row.
        chunk_tokens: most tokens per pass over prompts; bounds the memory of activations.
    Raises:
        ValueError: another head, a trunk whose state is not keys and values, or a number out of
            range.
    """

    _head = "state"  # the one this scorer reads
    _inline_tokens = 16  # a row that lacks more of its history is caught up in passes of its own

    def __init__(
        self,
        model: LengthValueModel,
        *,
        slots: int,
        max_length: int,
        max_candidates: int,
        chunk_tokens: int = 2048,
    ):
        for name, x in (("max_candidates", max_candidates), ("chunk_tokens", chunk_tokens)):
            if x < 1:
                raise ValueError(f"{name} must be at least 1, got {x}.")
        if model.config.head != self._head:
            raise ValueError(
                f"this LenVM has a {model.config.head!r} head, but {type(self).__name__} reads a "
                f"{self._head!r} head: use QHeadScorer for candidate heads, ExactScorer for others."
            )
        self.model, self.config, self.stats = model.eval(), model.config, ScorerStats()
        self._trunk = model.model
        check_trunk(self._trunk.config.get_text_config(), max_length)
        self.max_length, self.max_candidates = max_length, max_candidates
        self.chunk_tokens = chunk_tokens
        self.device = next(model.parameters()).device
        self._drops_masked = self.device.type == "cpu"
        self._table = SlotTable(slots, max_length)
        self._siblings: list[Siblings | None] = [None] * slots
        capacity = max_length + max_candidates
        self._store = KeyValueStore(
            self._probe(), slots=slots, capacity=capacity, device=self.device
        )

    @property
    def cache_bytes(self) -> int:
        """Memory of all slots, allocated at the start."""
        return self._store.bytes

    @property
    def in_use(self) -> int:
        """Open slots."""
        return self._table.in_use

    def open(self, history: History) -> int:
        """Claim a slot; raises PoolExhausted, or ValueError for a history that cannot fit."""
        self._check_length(history)
        slot, reused = self._table.claim(history.tail(0))
        siblings = self._siblings[slot]
        if siblings is not None and siblings.start != reused:
            self._siblings[slot] = None  # they continue tokens that this row does not have
        self.stats.reused += reused
        return slot

    def close(self, slot: int) -> None:
        """Free a slot and keep its content."""
        self._check_open(slot)
        self._table.free(slot)

    @torch.inference_mode()
    def score(
        self,
        slots: Sequence[int],
        histories: Sequence[History],
        candidates: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Raw logits z of `history + candidate`: [R, K] ids and bool -> [R, K] float32.

        Raises:
            ValueError: a slot that is not open, shapes that do not fit, a history that is too long
                or has lost tokens, an id outside the vocabulary. Nothing has been done then. (The
                ids of candidates are checked on a CPU only, where that does not wait.)
        """
        self._check_step(slots, histories, candidates, mask)
        rows = self._rows(slots, histories)
        kept, ids = self._kept(candidates, mask)
        self._read_histories(rows)
        self._keep_sampled(rows)
        self._catch_up(rows)
        logits = self._forward_candidates(rows, candidates, mask, kept)
        self._remember(rows, ids, kept)
        self.stats.steps += 1
        self.stats.rows += len(rows)
        return logits

    # --- history ---------------------------------------------------------------------------

    def _rows(self, slots: Sequence[int], histories: Sequence[History]) -> list[HistoryRow]:
        """The rows of a step by slot: neighbours in the store are read together."""
        rows = zip(slots, histories, strict=True)
        found = [HistoryRow(index, slot, history) for index, (slot, history) in enumerate(rows)]
        return sorted(found, key=lambda row: row.slot)

    def _read_histories(self, rows: list[HistoryRow]) -> None:
        for row in rows:
            row.missing = row.history.tail(int(self._table.lengths[row.slot]))
        self._check_ids(np.array([x for row in rows for x in row.missing], dtype=np.int64))

    def _keep_sampled(self, rows: list[HistoryRow]) -> None:
        """Where the next token was a candidate of the last step, take over what it computed."""
        moves, committed = [], []
        for row in rows:
            siblings = self._siblings[row.slot]
            column = siblings.column(row.missing[0]) if siblings and row.missing else None
            if column is not None:
                first = row.slot * self._store.capacity
                moves.append((first + column, first + siblings.start))
                committed.append(row)
        moves = [(source, target) for source, target in moves if source != target]
        if moves:
            self._store.move(to_device(np.array(moves).T, self.device))
        for row in committed:
            self._table.append(row.slot, row.missing[:1])
            row.missing = row.missing[1:]
        self.stats.committed += len(committed)
        for row in rows:
            self._siblings[row.slot] = None

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

    # --- candidates ------------------------------------------------------------------------

    def _kept(self, candidates: Tensor, mask: Tensor) -> tuple[np.ndarray, LateRead]:
        """[R, K] which candidates are run, and their ids, -1 where masked out."""
        ids = LateRead(candidates.masked_fill(~mask, -1))
        if not self._drops_masked:
            return np.ones(tuple(mask.shape), dtype=bool), ids
        kept = mask.numpy()
        self._check_ids(candidates.numpy()[kept])
        return kept, ids

    def _forward_candidates(
        self, rows: list[HistoryRow], candidates: Tensor, mask: Tensor, kept: np.ndarray
    ) -> Tensor:
        """Run the candidates, behind what little their rows still lack of their histories."""
        width = candidates.shape[1]
        order = np.array([row.index for row in rows], dtype=np.int64)
        cells = order[:, None] * width + np.arange(width)  # in the flattened candidates
        cells = cells[kept[order]]
        logits = torch.zeros(candidates.numel(), dtype=torch.float32, device=self.device)
        segments = [
            Segment(row.slot, int(self._table.lengths[row.slot]), len(row.missing), siblings)
            for row, siblings in zip(rows, kept[order].sum(axis=1).tolist(), strict=True)
        ]
        segments = [segment for segment in segments if segment.new + segment.siblings]
        if segments:
            step = Pass(self._store, segments)
            new = np.array([x for row in rows for x in row.missing], dtype=np.int64)
            source = np.empty(len(step.is_new), dtype=np.int64)  # in candidates, then new tokens
            source[step.is_new] = candidates.numel() + np.arange(len(new))
            source[~step.is_new] = cells
            pool = [candidates.masked_fill(~mask, 0).flatten(), to_device(new, self.device)]
            hidden = self._forward(torch.cat(pool)[to_device(source, self.device)], step)
            if len(new):
                hidden = hidden[to_device(np.flatnonzero(~step.is_new), self.device)]
            logits[to_device(cells, self.device)] = self.model.score(hidden)
            self.stats.caught_up += len(new)
            self.stats.candidates += len(cells)
        for row in rows:
            self._table.append(row.slot, row.missing)
        return logits.view(candidates.shape).masked_fill_(~mask, 0.0)

    def _remember(self, rows: list[HistoryRow], ids: LateRead, kept: np.ndarray) -> None:
        """The candidates stay behind their slots until the next token is known."""
        offsets = np.cumsum(kept, axis=1) - 1
        for row in rows:
            start = int(self._table.lengths[row.slot])
            self._siblings[row.slot] = Siblings(start, ids, offsets, row.index)

    # --- trunk -----------------------------------------------------------------------------

    def _forward(self, ids: Tensor, step: Pass) -> Tensor:
        """[T] ids -> [T, hidden size], the last hidden states."""
        self.stats.passes += 1
        return self._run_trunk(ids, step.position, step)

    def _run_trunk(self, ids: Tensor, position: Tensor, step: Pass | Probe) -> Tensor:
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
        self._run_trunk(zero, zero, probe)
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
