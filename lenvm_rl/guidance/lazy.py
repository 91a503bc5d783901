"""When the bound of a request has to be looked at again.

at_most and at_least leave p alone while their bound does not act. With s tokens to spare
(`core.tokens_to_spare`) the next look comes `s / lazy` tokens later, at the earliest at the next
token: in between the candidates are the policy's and the LenVM is not asked.

    exact while each token costs the bound at most `lazy` tokens: one of n, and a prediction that
    moves by at most lazy - 1 tokens towards the bound, on average over the tokens between looks

A prediction that moves faster is met up to s / lazy tokens late; what n itself says (a forced end,
no end before n) is known without a LenVM and holds at every token.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from torch import Tensor

from lenvm_rl.guidance.exact.cache import LateRead


class Look(NamedTuple):
    """A request that was looked at."""

    key: Hashable
    length: int
    """Tokens of its history then."""
    lazy: float
    """Tokens to spare that a token may cost, >= 1."""


class Looks:
    """The next look at each request; what there was to spare is read a step later, when it has
    arrived."""

    def __init__(self) -> None:
        self._next: dict[Hashable, int] = {}
        self._late: tuple[Sequence[Look], LateRead] | None = None

    def due(self, key: Hashable, length: int) -> bool:
        """Whether a request of so many tokens is to be looked at now."""
        self._settle()
        return length >= self._next.get(key, 0)

    def looked(self, looks: Sequence[Look], spare: Tensor) -> None:
        """These were looked at, with so many tokens to spare, [n]."""
        self._settle()
        self._late = looks, LateRead(spare)

    def forget(self, key: Hashable) -> None:
        """The request has ended."""
        self._settle()
        self._next.pop(key, None)

    def _settle(self) -> None:
        if self._late is None:
            return
        (looks, late), self._late = self._late, None
        for look, spare in zip(looks, late.read().tolist(), strict=True):
            # A finite number of tokens, whatever a broken LenVM says.
            steps = int(min(max(spare / look.lazy, 1.0), 1e6)) if spare == spare else 1
            self._next[look.key] = look.length + steps
