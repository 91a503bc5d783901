"""All candidates from one hidden state: the candidate head, on its own trunk or on the policy's.

    q(s, x) = W2 SiLU(W1 h_s + b1 + U e_x) + b2          (`model.heads`)

U e_x is a table over the vocabulary, made once. What is left per step is one hidden state per row,
and per candidate a gather and a small layer:

    QHeadScorer       h_s from the LenVM's own trunk: one token per row and step, instead of K
    PolicyHeadScorer  h_s that the policy has computed anyway (a LenVM with `frozen_trunk`):
                      no second model runs at all
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.guidance.exact.attention import Pass, Segment
from lenvm_rl.guidance.exact.cache import to_device
from lenvm_rl.guidance.exact.memory import ScorerMemory
from lenvm_rl.guidance.exact.prefix_kernels import Kernels
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.guidance.exact.trunk import HistoryRow, HistoryTrunk
from lenvm_rl.guidance.interface import History, masked_outputs, read_scored
from lenvm_rl.guidance.settings import refuse_vision
from lenvm_rl.model import LengthValueConfig, LengthValueModel, ValueHead


class CandidateTable:
    """U e_x of every token of the vocabulary, and the head that reads it.

    Args:
        model: a LenVM with a candidate head.
        device: where to keep the table and the head; None is where the model is.
    Raises:
        ValueError: a LenVM with another head.
    """

    @torch.inference_mode()
    def __init__(self, model: LengthValueModel, device: torch.device | None = None):
        if model.config.head != "candidate":
            raise ValueError(
                f"this LenVM has a {model.config.head!r} head, which cannot value a token before "
                "it is run: use the exact scorer, or train one made by "
                "`lenvm init --head candidate`."
            )
        embedding = model.get_input_embeddings()
        ids = torch.arange(model.config.vocab_size, device=embedding.weight.device)
        parts = [model.score.tokens(embedding(part)) for part in ids.split(16_384)]
        self._head = model.score if device is None else model.score.to(device)
        self._tokens = torch.cat(parts).to(device)  # [V, R] float32

    @property
    def bytes(self) -> int:
        """Memory of the table."""
        return self._tokens.nbytes

    @property
    def inner_size(self) -> int:
        """R, width of the head's hidden layer."""
        return self._tokens.shape[1]

    def states(self, hidden: Tensor) -> Tensor:
        """[n, H] hidden states -> [n, R]."""
        return self._head.states(hidden)

    @property
    def head(self) -> ValueHead:
        """What reads the table."""
        return self._head

    def outputs(self, states: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """Outputs [n, K] or [n, K, B] of candidates [n, K] in states [n, R]; 0 where masked out."""
        ids = candidates.masked_fill(~mask, 0)
        return masked_outputs(self._head.combine(states[:, None], self._tokens[ids]), mask)


class QHeadScorer(HistoryTrunk):
    """Candidate values from the LenVM's own trunk, one token per row and step.

    Shares slots, prompt passes and prefix reuse with the exact scorer; a step runs the newest
    token of each row only, and any number of candidates costs next to nothing.

    Args:
        model: a LenVM with a candidate head, on its device.
        slots, max_length, chunk_tokens, memory: as for `ExactScorer`.
    Raises:
        ValueError: a LenVM with another head, or keys and values that do not fit.
    """

    _head = "candidate"

    def __init__(
        self,
        model: LengthValueModel,
        *,
        slots: int,
        max_length: int,
        chunk_tokens: int = 2048,
        memory: int | None = None,
    ):
        self._candidates = CandidateTable(model)
        super().__init__(
            model,
            slots=slots,
            max_length=max_length,
            max_candidates=model.config.vocab_size,  # none of them takes room in the store
            spare=0,
            chunk_tokens=chunk_tokens,
            memory=memory,
        )
        self.memory = replace(self.memory, weights=self.memory.weights + self._candidates.bytes)
        # W1 h of each slot's last token; valid while the slot holds its whole history.
        self._states = torch.zeros(slots, self._candidates.inner_size, device=self.device)

    def open(self, history: History) -> int:
        """Claim a slot; its last token is always run, as its hidden state is not kept."""
        slot = super().open(history)
        self._table.lengths[slot] = min(self._table.lengths[slot], len(history) - 1)
        return slot

    @torch.inference_mode()
    def score(
        self,
        slots: Sequence[int],
        histories: Sequence[History],
        candidates: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Logits z of `history + candidate`: [R, K] ids and bool -> [R, K] float32."""
        return read_scored(self.head, self.outputs(slots, histories, candidates, mask), mask)

    @torch.inference_mode()
    def outputs(
        self,
        slots: Sequence[int],
        histories: Sequence[History],
        candidates: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """As `ExactScorer.outputs`."""
        self._check_step(slots, histories, candidates, mask)
        for group in self._groups(histories, 0):
            self._read([slots[i] for i in group], [histories[i] for i in group])
        self.stats.steps += 1
        self.stats.rows += len(slots)
        which = to_device(np.array(slots, dtype=np.int64), self.device)
        return self._candidates.outputs(self._states[which], candidates, mask)

    def _read(self, slots: Sequence[int], histories: Sequence[History]) -> None:
        """Bring rows that fit in the pages together to the end of their histories."""
        self._make_room(slots, histories, 0)
        rows = self._rows(slots, histories)
        self._read_histories(rows)
        self._catch_up(rows, leave=1)
        self._advance([row for row in rows if row.missing])

    def _advance(self, rows: list[HistoryRow]) -> None:
        """Run what the rows still lack, and keep the state of each one's last token."""
        if not rows:
            return
        step = Pass(
            self._store,
            [Segment(r.slot, int(self._table.lengths[r.slot]), len(r.missing), 0) for r in rows],
        )
        ids = np.array([x for row in rows for x in row.missing], dtype=np.int64)
        last = np.cumsum([len(row.missing) for row in rows]) - 1
        hidden = self._forward(to_device(ids, self.device), step)[to_device(last, self.device)]
        which = to_device(np.array([row.slot for row in rows], dtype=np.int64), self.device)
        self._states[which] = self._candidates.states(hidden)
        for row in rows:
            self._table.append(row.slot, row.missing)
        self.stats.caught_up += len(ids)


class PolicyHeadScorer:
    """Candidate values from the hidden states that the policy itself has computed.

    The LenVM must have been trained on the policy's frozen trunk; only its head and its token
    table are used, its trunk can be forgotten. Nothing is cached, so slots are numbers without
    meaning. Whether the trunk was this very
    policy's cannot be checked beyond its width.

    Args:
        model: a LenVM with a candidate head and `frozen_trunk`.
        device: of the policy; None is where the model is.
    Raises:
        ValueError: another head, or a trunk of its own.
    """

    reads_policy = True

    def __init__(self, model: LengthValueModel, device: torch.device | None = None):
        if not model.config.frozen_trunk:
            raise ValueError(
                "this LenVM was trained with a trunk of its own, so its head cannot read the "
                "policy's hidden states: use QHeadScorer, or train one made by "
                "`lenvm init --head candidate --freeze-trunk`."
            )
        self.config = model.config
        self._width = model.config.hidden_size
        self._candidates = CandidateTable(model, device)
        self.memory = ScorerMemory(weights=self._candidates.bytes, bytes_per_token=0)
        self._open: set[int] = set()
        self._opened = 0

    @property
    def head(self) -> ValueHead:
        """What is left of the LenVM."""
        return self._candidates.head

    @property
    def cache_bytes(self) -> int:
        """No keys and values are kept."""
        return 0

    @property
    def in_use(self) -> int:
        """Open slots."""
        return len(self._open)

    def open(self, history: History) -> int:
        """A number that no other row has."""
        self._opened += 1
        self._open.add(self._opened)
        return self._opened

    def close(self, slot: int) -> None:
        """Forget the number; nothing else is kept."""
        self._open.discard(slot)

    @torch.inference_mode()
    def score(
        self,
        slots: Sequence[int],
        histories: Sequence[History],
        candidates: Tensor,
        mask: Tensor,
        *,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Logits z: [R, K] ids and bool, hidden [R, H] -> [R, K] float32; see `outputs`."""
        found = self.outputs(slots, histories, candidates, mask, hidden=hidden)
        return read_scored(self.head, found, mask)

    @torch.inference_mode()
    def outputs(
        self,
        slots: Sequence[int],
        histories: Sequence[History],
        candidates: Tensor,
        mask: Tensor,
        *,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Raw outputs [R, K] or [R, K, B], 0 where masked out.

        Args:
            hidden: the policy's last hidden states, after the final norm, at each history's end.
        Raises:
            ValueError: hidden is missing or has another shape.
        """
        shape = (candidates.shape[0], self._width)
        if hidden is None or tuple(hidden.shape) != shape:
            got = "none" if hidden is None else str(tuple(hidden.shape))
            raise ValueError(
                f"hidden states of the policy must be {shape}, got {got}: the LenVM belongs to a "
                "policy of another width, or the engine did not hand them over."
            )
        return self._candidates.outputs(self._candidates.states(hidden), candidates, mask)


def make_scorer(
    model: LengthValueModel,
    *,
    slots: int,
    max_length: int,
    max_candidates: int,
    chunk_tokens: int = 2048,
    policy_states: bool = False,
    device: torch.device | None = None,
    fixed_shapes: bool | None = None,
    memory: int | None = None,
    kernels: Kernels | None = None,
) -> ExactScorer | QHeadScorer | PolicyHeadScorer:
    """The scorer that fits a LenVM's head.

    Args:
        policy_states: the engine can hand over the policy's hidden states: a head that was
            trained on them then needs no trunk of its own.
        slots, max_length, max_candidates, chunk_tokens, fixed_shapes, memory, kernels: see the
            scorers.
        device: where to work; None is where the model is.
    """
    refuse_vision(model.config)
    if policy_states and model.config.head == "candidate" and model.config.frozen_trunk:
        return PolicyHeadScorer(model, device)
    if device is not None:
        model = model.to(device)
    if model.config.head != "candidate":
        return ExactScorer(
            model,
            slots=slots,
            max_length=max_length,
            max_candidates=max_candidates,
            chunk_tokens=chunk_tokens,
            fixed_shapes=fixed_shapes,
            memory=memory,
            kernels=kernels,
        )
    return QHeadScorer(
        model, slots=slots, max_length=max_length, chunk_tokens=chunk_tokens, memory=memory
    )


def scorer_memory(
    config: LengthValueConfig,
    *,
    dtype: torch.dtype,
    max_candidates: int,
    fixed_shapes: bool,
    policy_states: bool = False,
) -> ScorerMemory:
    """What `make_scorer` would take, found out on tensors without content, before any is loaded."""
    with torch.device("meta"):
        model = LengthValueModel(copy.deepcopy(config))
    model.model.to(dtype)
    # The one way of calling experts that needs no content of a tensor in any dtype.
    model.model.set_experts_implementation("batched_mm")
    return make_scorer(
        model,
        slots=1,
        max_length=1,
        max_candidates=max_candidates,
        policy_states=policy_states,
        fixed_shapes=fixed_shapes,
    ).memory


def load_lenvm(checkpoint: str | Path, dtype: torch.dtype) -> LengthValueModel:
    """A LenVM to read from: trunk in `dtype`, head in float32, as it was trained."""
    return _Served.from_pretrained(checkpoint, dtype=dtype)


class _Served(LengthValueModel):
    _keep_in_fp32_modules_strict = ["score"]  # noqa: RUF012 (transformers reads a list or a set)
