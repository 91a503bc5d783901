"""What a LenVM says of the length that is left at the end of sequences of token ids.

Only a LenVM with the target `distribution` knows a distribution. Others predict one number a state,
that of their gamma: the mean below is then the inverse of the mean discounted length, at or below
the mean (Jensen, appendix F), and quantiles are None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import predicted_length
from lenvm_rl.model.forward import check_readable, config_space
from lenvm_rl.rollouts import Rollout
from lenvm_rl.sampling.predict import StateLogits


@dataclass(frozen=True)
class Lengths:
    """Predictions of N states; lengths in tokens, EOS included, without any limit on tokens."""

    mean: Tensor
    """[N] float32."""
    quantile: Callable[[float], Tensor] | None = None
    """q in (0, 1) to the smallest l with P(length <= l) >= q, [N]; None: no distribution."""
    longer: Callable[[Tensor], Tensor] | None = None
    """n [N] to P(length > n), [N]; None: no distribution."""


LengthReader = Callable[[Sequence[Sequence[int]]], Lengths]
"""Sequences of token ids, at least one each, to the lengths that follow their last tokens."""


def state_row(ids: Sequence[int]) -> Rollout:
    """A state as a row, for what reads rows; one token that is never fed is its response."""
    return Rollout(
        prompt_id="asked",
        sample_id=0,
        prompt_ids=list(ids),
        response_ids=[0],
        finish_reason="length",
    )


def length_reader(config: Any, outputs: StateLogits) -> LengthReader:
    """A reader of a LenVM whose weights are behind `outputs`.

    Args:
        config: of the checkpoint.
        outputs: rows to the raw outputs of their states, in any order: `iter_outputs` of a model,
            or an engine.
    Raises:
        ValueError: a LenVM that is no distribution and has no gamma.
    """
    bins = config.length_bins
    space = {} if bins else config_space(config)

    def read(sequences: Sequence[Sequence[int]]) -> Lengths:
        rows = [state_row(ids) for ids in sequences]
        found = {id(row): out[0] for row, out in outputs(rows)}
        stacked = torch.stack([found[id(row)] for row in rows])
        if bins is None:
            return Lengths(predicted_length(stacked, **space))
        lengths = bins.of(stacked)
        return Lengths(lengths.mean(), lengths.quantile, lengths.longer_than)

    return read


def check_state(config: Any, ids: Sequence[int]) -> None:
    """ValueError where the LenVM cannot read these ids: too many, or beyond its vocabulary."""
    check_readable(config, state_row(ids))
