"""The policy's own hidden states, on their way to its output layer: where are this step's rows?

Every causal model of vLLM makes its logits by one `LogitsProcessor` layer, called with the last
hidden states of the rows to be sampled, in the order of the logits that a logits processor then
gets. `capture()` wraps that layer's forward once per process and keeps the newest of them: no
model class of our own, any architecture, nothing copied. The call lies outside of CUDA graphs.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from vllm.model_executor.layers.logits_processor import LogitsProcessor


class HiddenStates:
    """The hidden states of the newest call of the output layer."""

    def __init__(self) -> None:
        self._newest: Tensor | None = None

    def keep(self, hidden: Tensor) -> None:
        """Called by the wrapped layer."""
        self._newest = hidden

    def of(self, logits: Tensor) -> Tensor:
        """The [N, H] states that [N, V] logits were made from.

        Raises:
            RuntimeError: the engine made them in another way.
        """
        if self._newest is None or len(self._newest) != len(logits):
            got = "none" if self._newest is None else f"{len(self._newest)} rows"
            raise RuntimeError(
                f"vLLM made logits of {len(logits)} rows, but its output layer was last called "
                f"with {got}: this model computes its logits in its own way, so its hidden states "
                "cannot be read. Use a LenVM with a trunk of its own."
            )
        return self._newest


_STATES = HiddenStates()


def capture() -> HiddenStates:
    """Begin to keep hidden states in this process; any number of times."""
    original = LogitsProcessor.forward
    if not getattr(original, "_lenvm_keeps_states", False):

        @functools.wraps(original)
        def forward(self: Any, lm_head: Any, hidden_states: Tensor, *args: Any, **kwargs: Any):
            _STATES.keep(hidden_states)
            return original(self, lm_head, hidden_states, *args, **kwargs)

        forward._lenvm_keeps_states = True
        LogitsProcessor.forward = forward
    return _STATES
