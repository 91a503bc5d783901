"""Values and lengths that a served LenVM gives, read from its raw outputs.

engine = pooling_engine(lenvm_dir)
for reading in read_tokens(engine, config, [[5, 9, 12], ...]): reading.lengths
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from lenvm_rl.core import predicted_length, value_of_logit
from lenvm_rl.model import LengthValueConfig
from lenvm_rl.model.forward import config_space
from lenvm_rl.model.hub import check_weights
from lenvm_rl.rollouts import Rollout
from lenvm_rl.vllm.room import cpu_defaults, one_cpu_process

_AT_ONCE = 512  # sequences handed to vLLM together, so that files of any size stream


@dataclass(frozen=True)
class TokenReading:
    """What a LenVM says at every token of one sequence: state i ends with token i."""

    logits: Tensor
    """z, [T] float32."""
    values: Tensor
    """V in (-1, 0), [T]."""
    horizons: Tensor
    """u = -V, [T]; larger is longer."""
    lengths: Tensor
    """Tokens left, EOS included, [T]; at or below the mean (Jensen, appendix F)."""


def reading_of(outputs: Tensor, config: LengthValueConfig) -> TokenReading:
    """Raw outputs `[T]`, `[T, 1]` or `[T, K]` of a LenVM with this configuration, as lengths.

    Raises:
        ValueError: a LenVM without gamma.
    """
    space = config_space(config)
    z = config.read(_of_head(outputs.detach().float()))
    values = value_of_logit(z, **space)
    return TokenReading(z, values, -values, predicted_length(z, **space))


def pooling_engine(lenvm: str, **settings: Any) -> Any:
    """vLLM's `LLM` with a LenVM as a pooling model; `settings` are vLLM's own."""
    check_weights(lenvm)
    from vllm import LLM

    one_cpu_process()
    defaults = cpu_defaults(str(lenvm), settings)
    return LLM(str(lenvm), runner="pooling", **{**defaults, **settings})


def token_outputs(engine: Any, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Raw outputs at every token, z `[T]` float32 per sequence of token ids, or `[T, K]`."""
    outputs = engine.encode(
        [{"prompt_token_ids": list(tokens)} for tokens in sequences],
        pooling_task="token_classify",
        use_tqdm=False,
    )
    return [_of_head(output.outputs.data.float()) for output in outputs]


def _of_head(served: Tensor) -> Tensor:
    """`[T, 1]` as the head's `[T]`; `[T, K]` as it is."""
    return served[:, 0] if served.dim() == 2 and served.shape[1] == 1 else served


def read_tokens(
    engine: Any, config: LengthValueConfig, sequences: Sequence[Sequence[int]]
) -> list[TokenReading]:
    """Readings of sequences of token ids, by an engine of `pooling_engine`."""
    return [reading_of(x, config) for x in token_outputs(engine, sequences)]


class EngineReader:
    """Raw outputs at the states of completions, computed by vLLM, as a stream; counts as it goes.

    Args:
        lenvm: directory of the LenVM.
        settings: of vLLM's `LLM`.
    """

    def __init__(self, lenvm: str, **settings: Any):
        self._engine = pooling_engine(lenvm, **settings)
        self.tokens = 0
        """Tokens read so far."""
        self.seconds = 0.0
        """Wall time of reading them, the start of the engine left out."""

    def __call__(self, rows: Iterable[Rollout]) -> Iterator[tuple[Rollout, Tensor]]:
        """Every completion with the outputs at its states s_0 .. s_{L-1}, `[L]` or `[L, K]`.

        s_0 ends with the last prompt token; the last response token itself is never fed.
        """
        rows = iter(rows)
        while batch := list(islice(rows, _AT_ONCE)):
            fed = [[*row.prompt_ids, *row.response_ids[:-1]] for row in batch]
            started = time.monotonic()
            outputs = token_outputs(self._engine, fed)
            self.seconds += time.monotonic() - started
            self.tokens += sum(map(len, fed))
            for row, x in zip(batch, outputs, strict=True):
                yield row, x[len(row.prompt_ids) - 1 :]
