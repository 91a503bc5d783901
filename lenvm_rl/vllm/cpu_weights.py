"""Can the weights of vLLM's CPU build be replaced while it runs? If it leaves them as they are.

On a CPU vLLM repacks every linear layer for its own kernels and drops the original, so that a
training run could load its first weights and no second ones. `LENVM_VLLM_CPU_PLAIN_WEIGHTS=1` keeps
the plain matrices and multiplies with torch: slower, and meant for training small policies on a
CPU. It does nothing on other platforms, and nothing unless it is set.
"""

from __future__ import annotations

import os
from typing import Any

import torch

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
