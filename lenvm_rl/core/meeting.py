"""How the workers that share a batch agree on the few numbers that are the whole batch's.

Each worker has some rows. Standard deviations, refits and means over the batch need sums over all
of them; everything else of a length term stays where the row is.
"""

from typing import Protocol

from torch import Tensor


class Meeting(Protocol):
    """Reductions of small float64 tensors over workers; every worker makes the same calls."""

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum."""
        ...

    def max(self, x: Tensor) -> Tensor:
        """Elementwise maximum."""
        ...


class _Alone:
    """One worker that has the whole batch."""

    def sum(self, x: Tensor) -> Tensor:
        return x

    def max(self, x: Tensor) -> Tensor:
        return x


ALONE: Meeting = _Alone()
