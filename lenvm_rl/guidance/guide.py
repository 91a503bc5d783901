"""How does a step's logits become guided logits?

    guide = Guide(scorer, eos_token_ids=[2], max_candidates=20)
    guide.apply(logits, rows)     # every step, in place, before temperature and truncation
    guide.close(key)              # when a request has ended

For each steered row: candidates of the policy, their lengths by the scorer, the rule of the row's
mode, and the guided distribution p' written back as logits. All other rows keep their bits.
Engines differ in how they name rows and keep tokens; that is all an adapter has to translate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lenvm_rl.core import MODES, guide, predicted_length, select_candidates
from lenvm_rl.guidance.batch import Batch
from lenvm_rl.guidance.interface import CandidateScorer, History, PoolExhausted
from lenvm_rl.guidance.rows import GuidedRow


class Guide:
    """Steers batches of running requests with one scorer.

    Args:
        scorer: values candidates; its configuration gives gamma and target.
        eos_token_ids: tokens that end a response, where its row does not say it itself.
        max_candidates: most candidates of a row; larger or missing top-k are cut to it.
        drops_rows: leave rows out whose scores would change nothing; None does so on a CPU, where
            they are known without waiting for the device.
    Raises:
        ValueError: no EOS, max_candidates below 1, or a LenVM without gamma.
    """

    def __init__(
        self,
        scorer: CandidateScorer,
        *,
        eos_token_ids: Iterable[int],
        max_candidates: int,
        drops_rows: bool | None = None,
    ):
        self.scorer = scorer
        self.drops_rows = drops_rows
        self.eos_token_ids = sorted(set(eos_token_ids))
        self.max_candidates = max_candidates
        self.gamma = scorer.config.require_gamma()
        # Read once: an attribute of a configuration takes longer than a small tensor operation.
        self._known_tokens = scorer.config.vocab_size
        self._space = {
            "target": scorer.config.target,
            "gamma": self.gamma,
            "length_scale": scorer.config.length_scale,
        }
        if not self.eos_token_ids:
            raise ValueError("no EOS token is given: without one no response can be ended")
        if max_candidates < 1:
            raise ValueError(f"max_candidates must be at least 1, got {max_candidates}")
        self._slots: OrderedDict[Hashable, int] = OrderedDict()  # least recently used first
        self._batch: Batch | None = None

    def check_vocabulary(self, size: int) -> None:
        """Raise ValueError unless the LenVM knows all `size` tokens that the policy can choose."""
        if size > self._known_tokens:
            raise ValueError(
                f"the policy chooses among {size} tokens, but the LenVM knows only "
                f"{self._known_tokens}: it was trained for another tokenizer. Use a LenVM of this "
                f"policy"
            )
        if self.eos_token_ids[0] >= size:  # one of several does not matter: it is never sampled
            raise ValueError(
                f"EOS token {self.eos_token_ids[0]} is outside the vocabulary of {size} tokens"
            )

    def close(self, key: Hashable) -> None:
        """A request has ended: free its slot. Unknown keys (never scored) are ignored."""
        slot = self._slots.pop(key, None)
        if slot is not None:
            self.scorer.close(slot)

    @torch.inference_mode()
    def apply(
        self,
        logits: Tensor,
        rows: Sequence[GuidedRow],
        *,
        hidden: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> None:
        """Write guided logits over the rows that are steered in this step, in place.

        A steered row becomes `T log p'` at its candidates and -inf elsewhere, so that
        `softmax(logits / T)` is p' (T = 0 counts as 1: the argmax is that of p'). Where EOS is
        forced, only EOS tokens stay, unless a grammar has excluded all of them already.

        Args:
            logits: [N, V] raw logits of the policy.
            rows: at most one per row of logits; those not listed are not touched.
            hidden: [N, H] hidden states of the policy that the logits were made from, for a
                scorer that reads them (`reads_policy`).
            padding: [N, P] further columns of the policy's output layer that stand for no token:
                -inf where a row is steered.
        Raises:
            PoolExhausted: more steered rows than the scorer has slots; nothing was written.
        """
        steered = [row for row in rows if row.steered]
        if not steered:
            return
        self.check_vocabulary(logits.shape[1])
        batch = self._batch_of(steered, logits)
        used_up = batch.begin_step(steered)
        chosen = batch.take(logits)

        ids, log_probs, mask = select_candidates(
            chosen,
            max_candidates=batch.width,
            forbidden=batch.forbidden(),
            eos_ids=batch.ends,
            **batch.limits,
        )
        is_eos = batch.is_end(ids) & mask
        others = mask & ~is_eos
        wanted = _worth_scoring(log_probs, mask, others, is_eos, used_up, batch.min_entropy)
        lengths = self._lengths(rows, steered, batch, ids, others, wanted, hidden)
        ruled = wanted if used_up is None else wanted | used_up
        guided = guide(
            log_probs,
            lengths,
            mask,
            is_eos,
            mode=torch.where(ruled, batch.mode, MODES.index("off")),
            gamma=self.gamma,
            present=batch.present,
            **batch.numbers,
        )
        forces = any(row.used_up and row.forces_eos for row in steered)
        _write(
            chosen,
            ids,
            guided.log_probs if batch.scale is None else guided.log_probs * batch.scale,
            batch.ends,
            guided.force_eos if forces else None,
        )
        batch.put(logits, chosen)
        if padding is not None and padding.shape[1]:
            batch.fill(padding, -torch.inf)

    def _batch_of(self, rows: Sequence[GuidedRow], logits: Tensor) -> Batch:
        """The last step's batch where the same requests are steered again."""
        device, size = logits.device, logits.shape[1]
        if self._batch is None or not self._batch.is_of(rows, device, size):
            self._batch = Batch(
                rows,
                device,
                max_candidates=self.max_candidates,
                ends=self.eos_token_ids,
                size=size,
            )
        return self._batch

    def _lengths(
        self,
        rows: Sequence[GuidedRow],
        steered: Sequence[GuidedRow],
        batch: Batch,
        ids: Tensor,
        others: Tensor,
        wanted: Tensor,
        hidden: Tensor | None,
    ) -> Tensor:
        """[R, K] predicted remaining tokens; 0 at what was not scored.

        Which rows need no scoring is known on the device. Only the CPU can be asked without
        waiting, so only there they leave the batch. Elsewhere they are scored like the others: the
        token that will be sampled is then among those whose keys and values the scorer holds, also
        where it is the only candidate.
        """
        states = {}
        if hidden is not None and getattr(self.scorer, "reads_policy", False):
            states["hidden"] = batch.take(hidden)
        taken, width, scored = list(range(len(steered))), ids.shape[1], others
        if self.drops_rows or (self.drops_rows is None and ids.device.type == "cpu"):
            scored = others & wanted[:, None]
            taken = np.flatnonzero(wanted.numpy()).tolist()
            if not taken:
                return torch.zeros(ids.shape)
            width = int(np.flatnonzero(scored.numpy().any(0))[-1]) + 1
        slots = self._open_slots([steered[i] for i in taken], {row.key for row in rows})
        histories = [steered[i].history for i in taken]
        if len(taken) == len(steered):
            lengths = self._score(slots, histories, ids[:, :width], scored[:, :width], states)
            return lengths if width == ids.shape[1] else F.pad(lengths, (0, ids.shape[1] - width))
        which = torch.tensor(taken)
        states = {name: x[which] for name, x in states.items()}
        lengths = torch.zeros(ids.shape)
        lengths[which, :width] = self._score(
            slots, histories, ids[which, :width], scored[which, :width], states
        )
        return lengths

    def _score(self, slots, histories, ids: Tensor, scored: Tensor, states) -> Tensor:
        """[n, K] remaining tokens after each candidate, 0 where not scored."""
        z = self.scorer.score(slots, histories, ids, scored, **states)
        return predicted_length(z, **self._space).masked_fill(~scored, 0.0)

    def _open_slots(self, rows: Sequence[GuidedRow], active: set[Hashable]) -> list[int]:
        """The rows' slots; new ones take the place of requests that are not in this step."""
        for row in rows:
            if row.key not in self._slots:
                self._slots[row.key] = self._open(row.history, active)
            self._slots.move_to_end(row.key)
        return [self._slots[row.key] for row in rows]

    def _open(self, history: History, active: set[Hashable]) -> int:
        while True:
            try:
                return self.scorer.open(history)
            except PoolExhausted:
                idle = next((key for key in self._slots if key not in active), None)
                if idle is None:
                    raise
                self.close(idle)


def _worth_scoring(
    log_probs: Tensor,
    mask: Tensor,
    others: Tensor,
    is_eos: Tensor,
    used_up: Tensor | None,
    min_entropy: Tensor | None,
) -> Tensor:
    """[R] bool: rows that have a choice to make which depends on lengths.

    One candidate is no choice; a flat enough distribution is asked for by min_entropy (nats); and
    a used-up row takes EOS where it can. `others` are the candidates but EOS.
    """
    if mask.shape[1] == 1:
        return torch.zeros_like(mask[:, 0])
    wanted = mask[:, 1] & others.any(-1)  # a mask is a prefix: two candidates at least
    choice = None
    if min_entropy is not None:
        entropy = -(log_probs.exp() * log_probs).masked_fill(~mask, 0.0).sum(-1).clamp(min=0.0)
        choice = entropy >= min_entropy
    if used_up is not None:
        unended = ~is_eos.any(-1)
        choice = torch.where(used_up, unended, True if choice is None else choice)
    return wanted if choice is None else wanted & choice


def _write(
    rows: Tensor, ids: Tensor, log_probs: Tensor, ends: Tensor, force: Tensor | None
) -> None:
    """Leave `log_probs` at the candidates and -inf elsewhere, in place; in rows [R] of `force`
    their `ends` [R, E] alone, unless a grammar has excluded all of them already."""
    values = log_probs.to(rows.dtype)
    if force is None:
        rows.fill_(-torch.inf).scatter_(1, ids, values)
        return
    place = ends.clamp(min=0)
    before = rows.gather(1, place)
    ends_now = force & (ends[:, 0] >= 0) & (before.amax(-1) > -torch.inf)
    ends_now = ends_now[:, None]
    rows.fill_(-torch.inf).scatter_(1, ids, values.masked_fill(ends_now, -torch.inf))
    rows.scatter_(1, place, torch.where(ends_now, before, rows.gather(1, place)))
