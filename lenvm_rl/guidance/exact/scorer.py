"""The LenVM's own value of every candidate, with one forward pass per step.

    z_k = head(trunk(history, x_k)),   k = 1..K

The keys and values of every history stay in a slot, in pages. A step runs the trunk over the
candidates of all rows at once, each seeing its row's history and itself (`exact.attention`); when
the engine then samples one of them, its keys and values are moved to the end of the history, where
they are exactly what a pass over the sampled token would have written. Nothing is computed twice
while there are pages: not the sampled token, not a prompt that another slot holds, not what a
preempted row had computed.

Values equal those of a full recompute up to rounding (about 1e-6 in float32) in every dtype's own
precision. On a CPU masked candidates are dropped from the pass. On CUDA a step has fixed shapes
(`exact.fixed_step`) and is replayed as a graph: dropping what is masked would
mean to wait for the mask, so it is computed and zeroed, and all that a row lacks of its history is
run before, in passes of its own. There the host waits for nothing but the ids of the last step's
candidates, which have arrived when it knows a sampled token.

The CUDA path has been checked on a CPU only, part by part: fixed shapes against a full recompute,
the kernels' place taken by a slow reference, no operation that needs a tensor's content. Capture,
replay, the kernels themselves and their speed have not been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.guidance.exact.attention import Pass, Segment
from lenvm_rl.guidance.exact.cache import ALIGN, LateRead, Siblings, to_device
from lenvm_rl.guidance.exact.fixed_step import FixedPass, FixedSteps
from lenvm_rl.guidance.exact.prefix_kernels import PAGE, Kernels, prefix_kernel
from lenvm_rl.guidance.exact.trunk import HistoryRow, HistoryTrunk
from lenvm_rl.guidance.interface import History, masked_outputs, read_scored
from lenvm_rl.model import LengthValueModel


class ExactScorer(HistoryTrunk):
    """Values candidates by running the LenVM on them; see `interface.CandidateScorer`.

    Args:
        model: with a state head; see `trunk.CachedTrunk`.
        slots: rows that can be open at once.
        max_length: longest history plus candidate in tokens.
        max_candidates: most candidates per row.
        chunk_tokens: most tokens per pass over prompts; bounds the memory of activations.
        fixed_shapes: pad steps to fixed shapes; None does so on CUDA, where steps are replayed.
        memory: bytes that keys and values may take; None: what the device has left.
        kernels: attention over prefixes that an engine brings, tried before `KERNELS`, on CUDA.
    Raises:
        ValueError: another head, a trunk whose state is not keys and values, a number out of
            range, or keys and values that do not fit.
    """

    def __init__(
        self,
        model: LengthValueModel,
        *,
        slots: int,
        max_length: int,
        max_candidates: int,
        chunk_tokens: int = 2048,
        fixed_shapes: bool | None = None,
        memory: int | None = None,
        kernels: Kernels | None = None,
    ):
        if fixed_shapes is None:
            fixed_shapes = next(model.parameters()).device.type == "cuda"
        super().__init__(
            model,
            slots=slots,
            max_length=max_length,
            max_candidates=max_candidates,
            spare=max_candidates,
            chunk_tokens=chunk_tokens,
            padding=fixed_shapes,
            page=PAGE if fixed_shapes else ALIGN,
            memory=memory,
        )
        self._drops_masked = self.device.type == "cpu" and not fixed_shapes
        self._fixed: FixedSteps | None = None
        if fixed_shapes:
            self._inline_tokens = 0  # a step has candidates alone
            self._fixed = FixedSteps(
                self._score_fixed,
                self._store,
                kernel=prefix_kernel(self._store, kernels),
                max_candidates=max_candidates,
            )
        self._siblings: list[Siblings | None] = [None] * slots

    def prepare(self, candidates: int) -> int:
        """Capture the graphs of steps with so many candidates; how many there are then."""
        return self._fixed.prepare(candidates) if self._fixed else 0

    def open(self, history: History) -> int:
        """As `CachedTrunk.open`; candidates of the last step are kept while they fit."""
        slot = super().open(history)
        siblings = self._siblings[slot]
        if siblings is not None and siblings.start != self._table.lengths[slot]:
            self._siblings[slot] = None  # they continue tokens that this row does not have
        return slot

    @torch.inference_mode()
    def score(
        self,
        slots: Sequence[int],
        histories: Sequence[History],
        candidates: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Logits z of `history + candidate`: [R, K] ids and bool -> [R, K] float32; `outputs` says
        what is refused."""
        return read_scored(self.head, self.outputs(slots, histories, candidates, mask), mask)

    @torch.inference_mode()
    def outputs(
        self,
        slots: Sequence[int],
        histories: Sequence[History],
        candidates: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Raw outputs at `history + candidate`, 0 where masked out: z [R, K], or those of a
        distribution, [R, K, B] for B bins.

        Raises:
            ValueError: a slot that is not open, shapes that do not fit, a history that is too long
                or has lost tokens, an id outside the vocabulary. Nothing has been done then. (The
                ids of candidates are checked on a CPU only, where that does not wait.)
        """
        self._check_step(slots, histories, candidates, mask)
        self._check_candidates(candidates, mask)
        spare = self._spare if self._fixed else candidates.shape[1]
        groups = self._groups(histories, spare)
        if len(groups) == 1:
            return self._outputs(slots, histories, candidates, mask, spare)
        shape = (*candidates.shape, *self.head.width)
        outputs = torch.zeros(shape, dtype=torch.float32, device=self.device)
        for group in groups:
            which = to_device(np.array(group), self.device)
            own = [slots[i] for i in group], [histories[i] for i in group]
            outputs[which] = self._outputs(*own, candidates[which], mask[which], spare)
        return outputs

    def _outputs(self, slots, histories, candidates: Tensor, mask: Tensor, spare: int) -> Tensor:
        """`outputs` of rows that fit in the pages together."""
        self._make_room(slots, histories, spare)
        rows = self._rows(slots, histories)
        kept, ids = self._kept(candidates, mask)
        self._read_histories(rows)
        self._keep_sampled(rows)
        self._catch_up(rows)
        if self._fixed is None:
            outputs = self._forward_candidates(rows, candidates, mask, kept)
        else:
            outputs = self._forward_fixed(self._fixed, slots, candidates, mask)
        self._remember(rows, ids, kept)
        self.stats.steps += 1
        self.stats.rows += len(rows)
        return outputs

    def _keep_sampled(self, rows: list[HistoryRow]) -> None:
        """Where the next token was a candidate of the last step, take over what it computed."""
        moves, committed = [], []
        for row in rows:
            siblings = self._siblings[row.slot]
            column = siblings.column(row.missing[0]) if siblings and row.missing else None
            if column is not None:
                moves.append(self._store.cells(row.slot, np.array([column, siblings.start])))
                committed.append(row)
        moves = [cells for cells in moves if cells[0] != cells[1]]
        if moves:
            self._store.move(to_device(np.array(moves).T, self.device))
        for row in committed:
            self._table.append(row.slot, row.missing[:1])
            row.missing = row.missing[1:]
        self.stats.committed += len(committed)
        for row in rows:
            self._siblings[row.slot] = None

    def _kept(self, candidates: Tensor, mask: Tensor) -> tuple[np.ndarray, LateRead]:
        """[R, K] which candidates are run, and their ids, -1 where masked out."""
        ids = LateRead(candidates.masked_fill(~mask, -1))
        if not self._drops_masked:
            return np.ones(tuple(mask.shape), dtype=bool), ids
        return mask.numpy(), ids

    def _check_candidates(self, candidates: Tensor, mask: Tensor) -> None:
        if self._drops_masked:
            self._check_ids(candidates.numpy()[mask.numpy()])

    def _evict(self, slot: int, pages: int) -> None:
        """With the candidates behind them."""
        super()._evict(slot, pages)
        self._siblings[slot] = None

    def _forward_candidates(
        self, rows: list[HistoryRow], candidates: Tensor, mask: Tensor, kept: np.ndarray
    ) -> Tensor:
        """Run the candidates, behind what little their rows still lack of their histories."""
        width = candidates.shape[1]
        order = np.array([row.index for row in rows], dtype=np.int64)
        cells = order[:, None] * width + np.arange(width)  # in the flattened candidates
        cells = cells[kept[order]]
        shape = (candidates.numel(), *self.head.width)
        outputs = torch.zeros(shape, dtype=torch.float32, device=self.device)
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
            outputs[to_device(cells, self.device)] = self.head.outputs(hidden)
            self.stats.caught_up += len(new)
            self.stats.candidates += len(cells)
        for row in rows:
            self._table.append(row.slot, row.missing)
        return masked_outputs(outputs.view(*candidates.shape, *self.head.width), mask)

    def _forward_fixed(
        self, steps: FixedSteps, slots: Sequence[int], candidates: Tensor, mask: Tensor
    ) -> Tensor:
        """Run the candidates, masked ones too, behind rows that lack nothing."""
        which = np.array(slots, dtype=np.int64)
        places = np.stack([which, self._table.lengths[which]])
        outputs = steps.run(candidates.masked_fill(~mask, 0), places)
        self.stats.passes += 1
        self.stats.candidates += candidates.numel()
        return masked_outputs(outputs, mask)

    def _score_fixed(self, ids: Tensor, step: FixedPass) -> Tensor:
        """[R K] ids -> [R K] logits or [R K, B] outputs; what a graph is captured of."""
        return self.head.outputs(self._run_trunk(ids, step.position, step))

    def _remember(self, rows: list[HistoryRow], ids: LateRead, kept: np.ndarray) -> None:
        """The candidates stay behind their slots until the next token is known."""
        offsets = np.cumsum(kept, axis=1) - 1
        for row in rows:
            start = int(self._table.lengths[row.slot])
            self._siblings[row.slot] = Siblings(start, ids, offsets, row.index)
