"""The interface of a scorer: what guidance asks of it, and what it may rely on.

A scorer values candidate next tokens: for each row (one running request) and each of its K
candidates it returns the LenVM's raw logit z of the state after that candidate. It keeps whatever
makes this cheap, such as keys and values of the row's tokens, in one of its *slots*. The rows,
their tokens and the arithmetic of guidance belong to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from lenvm_rl.model import LengthValueConfig, ValueHead


class PoolExhausted(ValueError):
    """All slots of a scorer are in use: guide fewer requests at a time, or build more slots."""


class History:
    """All tokens of a row so far, prompt and output, held by reference.

    Nothing is copied: when the engine appends a sampled token to its own output list, the history
    has it too.

    Args:
        prompt: token ids of the prompt, at least one.
        output: token ids generated so far; grows.
    """

    __slots__ = ("output", "prompt")

    def __init__(self, prompt: Sequence[int], output: Sequence[int]):
        if len(prompt) == 0:
            raise ValueError("the prompt has no tokens, so there is no state to value: use BOS")
        self.prompt = prompt
        self.output = output

    def __len__(self) -> int:
        return len(self.prompt) + len(self.output)

    def tail(self, start: int) -> list[int]:
        """Tokens from position `start` on, 0 <= start <= len(self); `tail(0)` is all of them."""
        if not 0 <= start <= len(self):
            raise ValueError(f"start must be in [0, {len(self)}], got {start}")
        n = len(self.prompt)
        if start >= n:
            return list(self.output[start - n :])
        return [*self.prompt[start:], *self.output]


@runtime_checkable
class CandidateScorer(Protocol):
    """Values of candidate next tokens, batched over rows.

    A history only grows while its slot is open, and may be any number of tokens ahead of what the
    scorer has seen (steps without guidance are skipped): the scorer catches up by itself, in
    bounded pieces.
    """

    config: LengthValueConfig
    """Of the LenVM: gamma, target, length scale, tokenizer."""

    def open(self, history: History) -> int:
        """Claim a slot for a row, the free one that already holds most of its tokens.

        Raises:
            PoolExhausted: all slots are in use.
        """
        ...

    def close(self, slot: int) -> None:
        """Free a slot; what it holds is kept for a later row with the same beginning."""
        ...

    def score(
        self,
        slots: Sequence[int],
        histories: Sequence[History],
        candidates: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Raw logits z of the states `history + candidate`.

        Args:
            slots: R open slots, all different.
            histories: R histories, those that the slots were opened for.
            candidates: [R, K] long token ids; where masked out any id of the vocabulary.
            mask: [R, K] bool, True at candidates to value.
        Returns:
            [R, K] float32; 0 where masked out.
        """
        ...


def masked_outputs(outputs: Tensor, mask: Tensor) -> Tensor:
    """Outputs [R, K] or [R, K, B] with 0 where masked out, in place."""
    return outputs.masked_fill_(~mask if outputs.dim() == mask.dim() else ~mask[..., None], 0.0)


def read_scored(head: ValueHead, outputs: Tensor, mask: Tensor) -> Tensor:
    """z [R, K] of masked outputs, 0 where masked out; those of a single gamma are z already."""
    return outputs if not head.width else head.read(outputs).masked_fill_(~mask, 0.0)
