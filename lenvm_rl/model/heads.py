"""The two heads of a length value model: what is the value of a state, and of a candidate token?

    state      z(s)    = W2 SiLU(W1 h_s + b1) + b2                       (LenVM, eq. 6-8)
    candidate  q(s, x) = W2 SiLU(W1 h_s + b1 + U e_x) + b2               (ours)

The candidate head predicts the value of the state that x leads to, before x has been run through
the trunk: one hidden state values every token of the vocabulary. Trained on the token that was
really taken, its target is the return of the next state, which the data holds already.

Both compute in float32 under any trunk dtype and any autocast: a bfloat16 logit moves a length by
1 part in 128, a bfloat16 sigmoid loses it altogether (see `core.values`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = ("state", "candidate")


class ValueHead(nn.Module):
    """z = W2 SiLU(W1 h + b1) + b2 in float32: [..., H] -> [...]. Parameters keep their dtype."""

    def __init__(self, hidden_size: int, inner_size: int | None = None):
        super().__init__()
        self.fc = nn.Linear(hidden_size, inner_size or hidden_size)
        self.summary = nn.Linear(inner_size or hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        with _without_autocast(hidden):
            return _linear(F.silu(_linear(hidden, self.fc)), self.summary).squeeze(-1)

    def linears(self) -> list[nn.Linear]:
        """All layers of the head."""
        return [module for module in self.modules() if isinstance(module, nn.Linear)]


class CandidateHead(ValueHead):
    """q(s, x) = W2 SiLU(W1 h_s + b1 + U e_x) + b2 in float32, with e_x the trunk's embedding of x.

    `states` and `tokens` compute the two addends, so that a table of `tokens` over the vocabulary,
    made once, leaves a gather and one small layer per candidate.
    """

    def __init__(self, hidden_size: int, inner_size: int | None = None):
        super().__init__(hidden_size, inner_size)
        self.token = nn.Linear(hidden_size, inner_size or hidden_size, bias=False)

    def states(self, hidden: Tensor) -> Tensor:
        """W1 h + b1: [..., H] -> [..., R]."""
        with _without_autocast(hidden):
            return _linear(hidden, self.fc)

    def tokens(self, embedded: Tensor) -> Tensor:
        """U e: token embeddings [..., H] -> [..., R]."""
        with _without_autocast(embedded):
            return _linear(embedded, self.token)

    def combine(self, states: Tensor, tokens: Tensor) -> Tensor:
        """W2 SiLU(states + tokens) + b2: [..., R] and [..., R] -> [...]."""
        with _without_autocast(states):
            return _linear(F.silu(states + tokens), self.summary).squeeze(-1)

    def forward(
        self, hidden: Tensor, embedded: Tensor, position_ids: Tensor | None = None
    ) -> Tensor:
        """q(s_{i-1}, x_i) at every position i: the value of the state that ends with token i.

        Args:
            hidden: [B, T, H] of the trunk.
            embedded: [B, T, H] token embeddings, the same tokens.
            position_ids: [B, T]; a sequence begins where it is 0, and there the state before is
                the zero vector. None: every row is one sequence.
        Returns:
            z [B, T] float32.
        """
        before = F.pad(hidden[:, :-1], (0, 0, 1, 0))
        if position_ids is not None:
            before = before.masked_fill((position_ids == 0).unsqueeze(-1), 0)
        return self.combine(self.states(before), self.tokens(embedded))


def make_head(kind: str, hidden_size: int, inner_size: int | None = None) -> ValueHead:
    """The head of `kind`, one of `HEADS`."""
    return {"state": ValueHead, "candidate": CandidateHead}[kind](hidden_size, inner_size)


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """Off where it is on; entering it takes longer than a small head does."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    return F.linear(x.float(), layer.weight.float(), bias)
