"""How many operations does a token cost, and how many could this machine do?"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from scripts.bench.trainers.presets import Preset


def trunk_parameters(preset: Preset) -> int:
    """Weights of the trunk's matrices, without embedding, norms and biases."""
    head = preset.hidden_size // preset.num_heads
    queries = preset.num_heads * head
    keys = preset.num_key_value_heads * head
    attention = preset.hidden_size * (2 * queries + 2 * keys)
    mlp = 3 * preset.hidden_size * preset.intermediate_size
    return preset.num_layers * (attention + mlp)


def training_flops(preset: Preset, lengths: Iterable[int]) -> float:
    """Floating-point operations that training the trunk on these sequences needs, in FLOP.

    Forward: 2 per weight and token, and causal attention, 2 products of 2 * H * n**2 / 2 per layer
    for a sequence of n tokens; backward is twice that. What a trainer does besides (padding,
    masked-out attention, LM head, optimiser) is not counted.
    """
    lengths = list(lengths)
    dense = 2 * trunk_parameters(preset) * sum(lengths)
    attention = 2 * preset.num_layers * preset.hidden_size * sum(n * n for n in lengths)
    return 3.0 * (dense + attention)


def matmul_ceiling(preset: Preset, seconds: float = 1.0) -> float:
    """FLOP/s of square matrix products in the preset's precision: the best of several."""
    dtype = torch.bfloat16 if preset.precision == "bf16" else torch.float32
    n = preset.matmul_size
    a = torch.randn(n, n, dtype=dtype, device=preset.device)
    b = torch.randn(n, n, dtype=dtype, device=preset.device)
    out = a @ b
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        synchronize(preset.device)
        start = time.perf_counter()
        for _ in range(3):
            torch.mm(a, b, out=out)
        synchronize(preset.device)
        best = min(best, (time.perf_counter() - start) / 3)
    return 2 * n**3 / best


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
