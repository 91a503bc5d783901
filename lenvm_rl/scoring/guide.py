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

import torch
from torch import Tensor

from lenvm_rl.core import MODES, RowNumbers, forbids_eos, guide, predicted_length, select_candidates
from lenvm_rl.scoring.interface import CandidateScorer, History, PoolExhausted
from lenvm_rl.scoring.rows import GuidedRow, numbers_of, on_device


class Guide:
    """Steers batches of running requests with one scorer.

    Args:
        scorer: values candidates; its configuration gives gamma and target.
        eos_token_ids: tokens that end a response.
        max_candidates: most candidates of a row; larger or missing top-k are cut to it.
    Raises:
        ValueError: no EOS, max_candidates below 1, or a LenVM without gamma.
    """

    def __init__(
        self, scorer: CandidateScorer, *, eos_token_ids: Iterable[int], max_candidates: int
    ):
        self.scorer = scorer
        self.eos_token_ids = sorted(set(eos_token_ids))
        self.max_candidates = max_candidates
        self.gamma = scorer.config.require_gamma()
        if not self.eos_token_ids:
            raise ValueError("no EOS token is given: without one no response can be ended")
        if max_candidates < 1:
            raise ValueError(f"max_candidates must be at least 1, got {max_candidates}")
        self._slots: OrderedDict[Hashable, int] = OrderedDict()  # least recently used first
        self._eos: Tensor | None = None

    def check_vocabulary(self, size: int) -> None:
        """Raise ValueError unless the LenVM knows all `size` tokens that the policy can choose."""
        known = self.scorer.config.vocab_size
        if size > known:
            raise ValueError(
                f"the policy chooses among {size} tokens, but the LenVM knows only {known}: it "
                f"was trained for another tokenizer. Use a LenVM of this policy"
            )
        if self.eos_token_ids[-1] >= size:
            raise ValueError(
                f"EOS token {self.eos_token_ids[-1]} is outside the vocabulary of {size} tokens"
            )

    def close(self, key: Hashable) -> None:
        """A request has ended: free its slot. Unknown keys (never scored) are ignored."""
        slot = self._slots.pop(key, None)
        if slot is not None:
            self.scorer.close(slot)

    @torch.inference_mode()
    def apply(
        self, logits: Tensor, rows: Sequence[GuidedRow], *, hidden: Tensor | None = None
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
        Raises:
            PoolExhausted: more steered rows than the scorer has slots; nothing was written.
        """
        steered = [row for row in rows if row.steered]
        if not steered:
            return
        self.check_vocabulary(logits.shape[1])
        index = on_device([row.index for row in steered], torch.long, logits.device)
        chosen = logits.index_select(0, index)
        table = numbers_of(steered, logits.device)
        eos = self._eos_on(logits.device)
        numbers = {name: table[name] for name in RowNumbers._fields}
        mode = table["mode"].long()

        ids, log_probs, mask = self._candidates(chosen, steered, table, mode, eos)
        is_eos = (ids[..., None] == eos).any(-1) & mask
        used_up = on_device([row.used_up for row in steered], torch.bool, logits.device)
        wanted = _worth_scoring(log_probs, mask, is_eos, used_up, table["min_entropy"])
        lengths = self._lengths(rows, steered, ids, mask & ~is_eos, wanted, hidden)
        guided = guide(
            log_probs,
            lengths,
            mask,
            is_eos,
            mode=torch.where(wanted | used_up, mode, MODES.index("off")),
            gamma=self.gamma,
            present={row.settings.mode for row in steered},
            **numbers,
        )
        scale = torch.where(table["temperature"] > 0, table["temperature"], 1.0).float()
        written = torch.full_like(chosen, -torch.inf)
        written.scatter_(1, ids, (guided.log_probs * scale[:, None]).to(logits.dtype))
        if any(row.used_up and row.settings.forces_eos for row in steered):
            only_eos = torch.full_like(chosen, -torch.inf).index_copy_(1, eos, chosen[:, eos])
            can_end = only_eos.amax(-1) > -torch.inf
            written = torch.where((guided.force_eos & can_end)[:, None], only_eos, written)
        logits.index_copy_(0, index, written)

    def _eos_on(self, device: torch.device) -> Tensor:
        if self._eos is None or self._eos.device != device:
            self._eos = torch.tensor(self.eos_token_ids, device=device)
        return self._eos

    def _candidates(
        self,
        logits: Tensor,
        rows: Sequence[GuidedRow],
        table: dict[str, Tensor],
        mode: Tensor,
        eos: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`select_candidates` with the settings of the rows; no wider than any of them needs."""
        asked = [row.settings for row in rows]
        widths = [s.top_k if s.top_k > 0 else self.max_candidates for s in asked]
        forbidden = None
        if any(s.mode == "at_least" for s in asked):
            forbidden = forbids_eos(
                mode, table["generated"], table["target"], count_eos=table["count_eos"]
            )
        return select_candidates(
            logits,
            temperature=table["temperature"],
            max_candidates=min(max(widths), self.max_candidates),
            top_k=table["top_k"].long(),
            top_p=table["top_p"] if any(s.top_p < 1 for s in asked) else None,
            min_p=table["min_p"] if any(s.min_p > 0 for s in asked) else None,
            forbidden=forbidden,
            eos_ids=eos,
        )

    def _lengths(
        self,
        rows: Sequence[GuidedRow],
        steered: Sequence[GuidedRow],
        ids: Tensor,
        scored: Tensor,
        wanted: Tensor,
        hidden: Tensor | None,
    ) -> Tensor:
        """[R, K] predicted remaining tokens; 0 at what was not scored.

        Which rows need no scoring is known on the device. Only the CPU can be asked without
        waiting, so only there they leave the batch; elsewhere their masks are empty.
        """
        scored = scored & wanted[:, None]
        lengths = torch.zeros(ids.shape, device=ids.device)
        taken, width = list(range(len(steered))), ids.shape[1]
        if ids.device.type == "cpu":
            taken = wanted.nonzero()[:, 0].tolist()
            if not taken:
                return lengths
            width = int(scored.any(0).nonzero().amax()) + 1
        slots = self._open_slots([steered[i] for i in taken], {row.key for row in rows})
        which = on_device(taken, torch.long, ids.device)
        scored = scored[which, :width]
        config, states = self.scorer.config, {}
        if getattr(self.scorer, "reads_policy", False) and hidden is not None:
            places = [steered[i].index for i in taken]
            states["hidden"] = hidden[on_device(places, torch.long, hidden.device)]
        z = self.scorer.score(
            slots, [steered[i].history for i in taken], ids[which, :width], scored, **states
        )
        predicted = predicted_length(
            z, target=config.target, gamma=self.gamma, length_scale=config.length_scale
        )
        lengths[which, :width] = predicted.masked_fill(~scored, 0.0)
        return lengths

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
    log_probs: Tensor, mask: Tensor, is_eos: Tensor, used_up: Tensor, min_entropy: Tensor
) -> Tensor:
    """[R] bool: rows that have a choice to make which depends on lengths.

    One candidate is no choice; a flat enough distribution is asked for by min_entropy (nats); and
    a used-up row takes EOS where it can.
    """
    entropy = -(log_probs.exp() * log_probs).masked_fill(~mask, 0.0).sum(-1).clamp(min=0.0)
    choice = torch.where(used_up, ~is_eos.any(-1), entropy >= min_entropy)
    return choice & (mask.sum(-1) > 1) & (mask & ~is_eos).any(-1)
