"""The generated tokens of a batch, one after another without padding, and what runs along a row.

Completions differ in length by factors, so a padded [B, T] tensor is mostly padding, and what the
masks cut out (observations of a tool) has to be skipped. `Rows` says how long every row is; a
tensor [N] then holds all generated tokens of all rows, in order. Functions that take a mask take
`Rows` instead of it: their tensors are [N] then, in and out, and [B, T] with a mask.

Shapes: B rows, N tokens of all of them, T columns of a mask.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lenvm_rl.core.checks import check_rank, check_same_shape, per_row

_BLOCK = 32  # tokens that one product with a matrix of powers carries


class Rows:
    """Which of N tokens belong to which of B rows.

    Args:
        lengths: [B] tokens of each row, 0 or more.
    """

    def __init__(self, lengths: Tensor, *, mask: Tensor | None = None):
        self.lengths = lengths.long()
        self._mask = mask

    @classmethod
    def of(cls, mask: Tensor | Rows, *, name: str = "mask", **tensors: Tensor) -> Rows:
        """The rows of a mask [B, T] that is non-zero at generated tokens, or those given.

        Args:
            mask: or rows.
            name: of the mask, in messages.
            tensors: what has to have the shape of the mask, or [N], by name.
        Raises:
            ValueError: another shape.
        """
        if isinstance(mask, Rows):
            check_same_shape(**tensors, tokens=torch.empty(len(mask), device="meta"))
            return mask
        check_rank(mask, name=name, axes="BT")
        check_same_shape(**tensors, **{name: mask})
        counted = mask != 0
        return cls(counted.sum(1), mask=counted)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def device(self) -> torch.device:
        """Where the lengths are."""
        return self.lengths.device

    @cached_property
    def flat(self) -> Rows:
        """The same rows without a mask."""
        return self if self._mask is None else Rows(self.lengths)

    @cached_property
    def offsets(self) -> Tensor:
        """[B + 1] int64: row b has the tokens offsets[b] up to offsets[b + 1]."""
        return torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0))

    @cached_property
    def row(self) -> Tensor:
        """[N] int64: the row of every token."""
        numbers = torch.arange(len(self.lengths), device=self.device)
        return numbers.repeat_interleave(self.lengths, output_size=int(self.offsets[-1]))

    @cached_property
    def left(self) -> Tensor:
        """[N] int64: tokens still to come, counting the token itself: L, L - 1, ..., 1."""
        return self.spread(self.offsets[1:]) - torch.arange(len(self), device=self.device)

    def per_row(self, x: Tensor | float, *, name: str) -> Tensor:
        """A number or a tensor [B] as [B], at least float32; raises as `checks.per_row` does."""
        return per_row(x, like=self.lengths.float(), name=name)

    def numbered(self, groups: Tensor) -> tuple[int, Tensor]:
        """How many prompts the rows are of, and [B] int64 the number of each row's.

        Args:
            groups: [B] integers, equal for completions of one prompt.
        Raises:
            ValueError: another shape.
        """
        if groups.shape != self.lengths.shape:
            raise ValueError(
                f"groups must have shape {tuple(self.lengths.shape)}, one prompt of each row, got "
                f"{tuple(groups.shape)}."
            )
        names, number = groups.unique(return_inverse=True)
        return len(names), number

    def pack(self, x: Tensor) -> Tensor:
        """[N] of a tensor that is shaped like the mask; the very tensor without one."""
        return x if self._mask is None else x[self._mask]

    def unpack(self, x: Tensor) -> Tensor:
        """The inverse of `pack`: 0 where the mask is; the very tensor without one."""
        if self._mask is None:
            return x
        return x.new_zeros(self._mask.shape).masked_scatter(self._mask, x)

    def spread(self, x: Tensor) -> Tensor:
        """[N]: of every token, what its row has in x [B]."""
        return x[self.row]

    def sums(self, x: Tensor) -> Tensor:
        """[B] float64: the sum over each row of x [N]."""
        return torch.segment_reduce(x.double(), "sum", lengths=self.lengths, unsafe=True, initial=0)

    def ends(self, x: Tensor) -> Tensor:
        """[B]: x [N] at the last token of each row; 0 in rows without any."""
        if not len(x):
            return x.new_zeros(len(self.lengths))
        last = x[(self.offsets[1:] - 1).clamp(min=0)]
        return torch.where(self.lengths > 0, last, torch.zeros_like(last))

    def following(self, x: Tensor, end: Tensor) -> Tensor:
        """[N]: x [N] at the next token of the row, `end` [B] after the last one."""
        last, some = self.offsets[1:] - 1, self.lengths > 0
        return x.roll(-1).index_copy(0, last[some], end[some].to(x.dtype))

    def decayed(self, x: Tensor, decay: float, end: Tensor | None = None) -> Tensor:
        """The linear filter that runs backwards along every row.

            y_t = x_t + decay * y_{t+1},     y_L = end

        in blocks: a product with the powers of decay within each, and the same filter over the
        blocks of a row. No loop over tokens; O(N) work and memory.

        Args:
            x: [N] float64.
            decay: in [0, 1].
            end: [B] float64, what follows the last token; 0 by default.
        Returns:
            [N]. Gradients flow to x and end.
        """
        if end is not None and decay:
            last, some = self.offsets[1:] - 1, self.lengths > 0
            x = x.index_add(0, last[some], decay * end[some].to(x.dtype))
        if not decay or not len(x):
            return x
        blocks = Rows((self.lengths + _BLOCK - 1) // _BLOCK)
        at = torch.arange(len(x), device=x.device)
        at += self.spread(_BLOCK * blocks.offsets[:-1] - self.offsets[:-1])
        filled = x.new_zeros(_BLOCK * len(blocks)).index_copy(0, at, x).view(-1, _BLOCK)
        power = torch.arange(_BLOCK, device=x.device, dtype=x.dtype)
        y = filled @ torch.pow(decay, power[:, None] - power).tril()
        if len(blocks) > len(self.lengths):
            later = blocks.decayed(y[:, 0], decay**_BLOCK)
            later = blocks.following(later, later.new_zeros(len(self.lengths)))
            y = torch.addcmul(y, later[:, None], torch.pow(decay, _BLOCK - power))
        return y.flatten()[at]
