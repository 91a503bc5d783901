"""Places where this package reaches into vLLM beyond its documented interfaces.

Hidden states: every causal model of vLLM makes its logits by one `LogitsProcessor` layer, called
with the last hidden states of the rows to be sampled, in the order of the logits that a logits
processor then gets. `capture()` wraps that layer's forward once per process and keeps the newest of
them: no model class of our own, any architecture, nothing copied. The call lies outside of CUDA
graphs.

Flash attention: vLLM's wheels for CUDA bring one, whatever else is installed, with paged keys and
the log-sum-exp: a kernel over the LenVM's prefixes.

Weights on a CPU: there vLLM repacks every linear layer for its own kernels and drops the original,
so that a training run could load its first weights and no second ones.
`LENVM_VLLM_CPU_PLAIN_WEIGHTS=1` keeps the plain matrices and multiplies with torch: slower, and
meant for training small policies on a CPU. It does nothing on other platforms, and nothing unless
it is set.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.guidance.exact.prefix_kernels import PAGE, Kernels, PrefixKernel


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
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    original = LogitsProcessor.forward
    if not getattr(original, "_lenvm_keeps_states", False):

        @functools.wraps(original)
        def forward(self: Any, lm_head: Any, hidden_states: Tensor, *args: Any, **kwargs: Any):
            _STATES.keep(hidden_states)
            return original(self, lm_head, hidden_states, *args, **kwargs)

        forward._lenvm_keeps_states = True
        LogitsProcessor.forward = forward
    return _STATES


def vllm_kernel() -> PrefixKernel:
    """vLLM's own; ImportError where its build has none."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    def attend(query, keys, values, prefixes, scale):
        output, lse = flash_attn_varlen_func(
            query,
            keys.unflatten(0, (-1, PAGE)),
            values.unflatten(0, (-1, PAGE)),
            max_seqlen_q=prefixes.max_queries,
            cu_seqlens_q=prefixes.cu_queries,
            max_seqlen_k=prefixes.max_keys,
            seqused_k=prefixes.used,
            softmax_scale=scale,
            block_table=prefixes.pages,
            return_softmax_lse=True,
        )
        return output, lse

    return attend


VLLM_KERNELS: Kernels = {"vllm": vllm_kernel}


SWITCH = "LENVM_VLLM_CPU_PLAIN_WEIGHTS"


def keep_plain_weights() -> bool:
    """Have linear layers keep their weights, if asked to; True when that is done.

    Raises:
        AttributeError: vLLM has no such function any more.
    """
    if os.environ.get(SWITCH) != "1":
        return False
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    import vllm.model_executor.layers.utils as layers

    layers.dispatch_cpu_unquantized_gemm  # noqa: B018 (another vLLM: say so now)
    layers.dispatch_cpu_unquantized_gemm = _plain_linear  # its callers look it up in the module
    return True


def _plain_linear(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear
