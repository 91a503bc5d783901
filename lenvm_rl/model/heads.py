"""The two heads of a length value model: what is the value of a state, and of a candidate token?

    state      z(s)    = W2 SiLU(W1 h_s + b1) + b2                       (LenVM, eq. 6-8)
    candidate  q(s, x) = W2 SiLU(W1 h_s + b1 + U e_x) + b2               (ours)

With the target `distribution` W2 has K rows, and z is read off the K outputs at the gamma of the
configuration (`core.distribution`): a head gives z whatever its target, and `outputs` what it is
trained on.

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

from lenvm_rl.model.config import LengthValueConfig


class ValueHead(nn.Module):
    """z = W2 SiLU(W1 h + b1) + b2 in float32: [..., H] -> [...]. Parameters keep their dtype.

    Args:
        hidden_size: H.
        inner_size: width of the hidden layer; None is H.
        config: of the LenVM that it belongs to, for bins and, at use, gamma; None: one output.
    """

    def __init__(
        self,
        hidden_size: int,
        inner_size: int | None = None,
        config: LengthValueConfig | None = None,
    ):
        super().__init__()
        self._config = config
        bins = None if config is None else config.length_bins
        self.width = () if bins is None else (len(bins),)
        """Shape of the outputs at a state: () for z itself, or (K,)."""
        self.fc = nn.Linear(hidden_size, inner_size or hidden_size)
        self.summary = nn.Linear(inner_size or hidden_size, 1 if bins is None else len(bins))

    def outputs(self, hidden: Tensor) -> Tensor:
        """What is trained: z [...], or the K outputs [..., K] of a distribution."""
        with _without_autocast(hidden):
            return self._summarise(_linear(hidden, self.fc))

    def read(self, outputs: Tensor) -> Tensor:
        """z [...] of `outputs`, at the gamma of the configuration."""
        return outputs if self._config is None else self._config.read(outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.read(self.outputs(hidden))

    def _summarise(self, inner: Tensor) -> Tensor:
        out = _linear(F.silu(inner), self.summary)
        return out if self.width else out.squeeze(-1)

    def linears(self) -> list[nn.Linear]:
        """All layers of the head."""
        return [module for module in self.modules() if isinstance(module, nn.Linear)]


class CandidateHead(ValueHead):
    """q(s, x) = W2 SiLU(W1 h_s + b1 + U e_x) + b2 in float32, with e_x the trunk's embedding of x.

    `states` and `tokens` compute the two addends, so that a table of `tokens` over the vocabulary,
    made once, leaves a gather and one small layer per candidate.
    """

    def __init__(
        self,
        hidden_size: int,
        inner_size: int | None = None,
        config: LengthValueConfig | None = None,
    ):
        super().__init__(hidden_size, inner_size, config)
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
        """Outputs W2 SiLU(states + tokens) + b2: [..., R] and [..., R] -> [...] or [..., K]."""
        with _without_autocast(states):
            return self._summarise(states + tokens)

    def outputs(
        self, hidden: Tensor, embedded: Tensor, position_ids: Tensor | None = None
    ) -> Tensor:
        """q(s_{i-1}, x_i) at every position i: the value of the state that ends with token i.

        Args:
            hidden: [B, T, H] of the trunk.
            embedded: [B, T, H] token embeddings, the same tokens.
            position_ids: [B, T]; a sequence begins where it is 0, and there the state before is
                the zero vector. None: every row is one sequence.
        Returns:
            z [B, T] float32, or [B, T, K].
        """
        before = F.pad(hidden[:, :-1], (0, 0, 1, 0))
        if position_ids is not None:
            before = before.masked_fill((position_ids == 0).unsqueeze(-1), 0)
        return self.combine(self.states(before), self.tokens(embedded))

    def forward(
        self, hidden: Tensor, embedded: Tensor, position_ids: Tensor | None = None
    ) -> Tensor:
        return self.read(self.outputs(hidden, embedded, position_ids))


def make_head(config: LengthValueConfig) -> ValueHead:
    """The head that a configuration asks for."""
    kind = {"state": ValueHead, "candidate": CandidateHead}[config.head]
    return kind(config.hidden_size, config.head_hidden_size, config)


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """Off where it is on; entering it takes longer than a small head does."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    return F.linear(x.float(), layer.weight.float(), bias)
