"""At which states is a head asked, for which candidates, and what does the exact scorer say there?

States are drawn from completions; the candidates at a state are the policy's most probable tokens,
as in guidance; the exact scorer runs through each completion once and values the candidates of all
its states on the way. Shapes: n states, K candidates, H hidden size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lenvm_rl.core import select_candidates
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.guidance.interface import History
from lenvm_rl.model import LengthValueModel

Completion = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its response."""


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How a head is distilled."""

    candidates: int = 20
    """K, the policy's most probable tokens at a state."""
    min_p: float = 0.02
    """None below this share of the most probable one's probability; in [0, 1]."""
    states: int = 8
    """States drawn from each completion."""
    completions: int = 16
    """Completions of a step."""
    learning_rate: float = 1e-3
    """At the start; it falls to 0 along a cosine."""
    max_length: int = 4096
    """Tokens of prompt and response that are read."""

    def __post_init__(self) -> None:
        for name in ("candidates", "states", "completions", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}: it is a share.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")


@dataclass(frozen=True, kw_only=True)
class DistillBatch:
    """States, the candidates at them, and what the exact scorer says."""

    hidden: Tensor
    """[n, H] of the head's trunk, at the states."""
    candidates: Tensor
    """[n, K] token ids."""
    mask: Tensor
    """[n, K] bool, candidates that count."""
    exact: Tensor
    """[n, K] raw logits z of the exact scorer; 0 where masked out."""


class Teacher:
    """Draws states and answers for all candidates at them.

    Args:
        exact: LenVM with a state head; valued by `ExactScorer`.
        trunk: of the head that learns; gives the hidden states.
        policy: causal LM whose most probable tokens are the candidates.
        eos_token_ids: tokens that end a response.
        settings: see `DistillSettings`.
        seed: of the choice of states.
    """

    def __init__(
        self,
        exact: LengthValueModel,
        trunk: Any,
        policy: Any,
        *,
        eos_token_ids: Iterable[int],
        settings: DistillSettings,
        seed: int = 0,
    ):
        self.settings = settings
        self._trunk, self._policy = trunk.eval(), policy.eval()
        self._eos = torch.tensor(sorted(set(eos_token_ids)), device=policy.device)
        self._scorer = ExactScorer(
            exact,
            slots=settings.completions,
            max_length=settings.max_length + 1,
            max_candidates=settings.candidates,
        )
        self._random = random.Random(seed)

    def ask(self, completions: Sequence[Completion]) -> DistillBatch:
        """Draw states and have every candidate at them valued exactly.

        Raises:
            ValueError: no completion, a prompt or response without tokens, ids outside the
                vocabulary, or values that are no numbers (a damaged checkpoint).
        """
        if not completions:
            raise ValueError("no completions are left to distil from.")
        if len(completions) > self.settings.completions:
            raise ValueError(
                f"{len(completions)} completions in a step, but settings.completions is "
                f"{self.settings.completions}."
            )
        tokens, places = self._draw(completions)
        row = torch.tensor([i for i, ts in enumerate(places) for _ in ts])
        column = torch.tensor([t for ts in places for t in ts])
        with torch.no_grad():
            candidates, mask = self._candidates(tokens, row, column)
            hidden = self._states(self._trunk, tokens, row, column)
            exact = self._exact(tokens, places, candidates, mask)
        if not torch.isfinite(exact[mask]).all():
            raise ValueError("the exact LenVM gives values that are no numbers: is it damaged?")
        return DistillBatch(hidden=hidden, candidates=candidates, mask=mask, exact=exact)

    def _draw(self, completions: Sequence[Completion]) -> tuple[list[list[int]], list[list[int]]]:
        """Tokens of each completion, and columns of its last tokens before the states drawn."""
        tokens, places = [], []
        for prompt, response in completions:
            if not len(prompt) or not len(response):
                raise ValueError("a completion needs tokens in its prompt and in its response.")
            ids = [*prompt, *response][: self.settings.max_length]
            last = range(len(prompt) - 1, len(ids) - (len(ids) == len(prompt) + len(response)))
            count = min(self.settings.states, len(last))
            tokens.append(ids)
            places.append(sorted(self._random.sample(last, count)))
        if not any(places):
            raise ValueError(
                f"all prompts have more than max_length {self.settings.max_length} tokens: raise it"
            )
        size = self._scorer.config.vocab_size
        worst = max(max(ids) for ids in tokens)
        if worst >= size or min(min(ids) for ids in tokens) < 0:
            raise ValueError(
                f"token id {worst} is outside the LenVM's vocabulary of {size}: these completions "
                "are of another policy."
            )
        return tokens, places

    def _states(self, trunk: Any, tokens: list[list[int]], row: Tensor, column: Tensor) -> Tensor:
        """[n, H] last hidden states; padding lies behind, where causal attention does not look."""
        device = next(trunk.parameters()).device
        ids = pad_sequence([torch.tensor(x) for x in tokens], batch_first=True).to(device)
        hidden = trunk(input_ids=ids, use_cache=False).last_hidden_state
        return hidden[row.to(device), column.to(device)]

    def _candidates(self, tokens, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._states(self._policy.base_model, tokens, row, column)
        logits = self._policy.get_output_embeddings()(hidden)
        logits = logits[:, : self._scorer.config.vocab_size].float()
        min_p = torch.full((len(logits),), self.settings.min_p, device=logits.device)
        ids, _, mask = select_candidates(
            logits, max_candidates=self.settings.candidates, min_p=min_p if min_p.any() else None
        )
        return ids, mask & ~torch.isin(ids, self._eos)

    def _exact(self, tokens, places, candidates: Tensor, mask: Tensor) -> Tensor:
        """[n, K]: the j-th states of all completions together, one call of the scorer each."""
        scorer, first = self._scorer, 0
        starts = []
        for ts in places:
            starts.append(first)
            first += len(ts)
        slots = {
            i: scorer.open(History(tokens[i][: ts[0] + 1], [])) for i, ts in enumerate(places) if ts
        }
        exact = torch.zeros(candidates.shape, device=scorer.device)
        try:
            for j in range(self.settings.states):
                rows = [i for i in slots if j < len(places[i])]
                if not rows:
                    break
                histories = [History(tokens[i][: places[i][j] + 1], []) for i in rows]
                which = [starts[i] + j for i in rows]
                exact[which] = scorer.score(
                    [slots[i] for i in rows],
                    histories,
                    candidates[which].to(scorer.device),
                    mask[which].to(scorer.device),
                ).clone()
        finally:
            for slot in slots.values():
                scorer.close(slot)
        return exact.to(candidates.device)
