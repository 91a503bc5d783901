"""Sizes of random models, and what a device does at best: copying, products of large matrices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig


@dataclass(frozen=True)
class Shape:
    """A model's sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int

    def config(self, kind: str, *, context: int, **more: Any) -> Any:
        """The configuration of a model of transformers, `kind` being its type."""
        return AutoConfig.for_model(
            kind,
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=context,
            **more,
        )


def synchronize(device: torch.device | str) -> None:
    """Wait for the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(
    device: str, dtype: torch.dtype, *, size: int = 8192, seconds: float = 0.5
) -> float:
    """FLOP/s of square matrix products, the best of the rounds that begin within `seconds`."""
    a, b = torch.randn(2, size, size, dtype=dtype, device=device)
    out = a @ b
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(3):
            torch.mm(a, b, out=out)
        synchronize(device)
        best = min(best, (time.perf_counter() - started) / 3)
    return 2.0 * size**3 / best


def copy_bandwidth(device: str, *, mib: int = 1024, times: int = 20) -> float:
    """Bytes read and written per second by copying a buffer, the best of some rounds."""
    source = torch.ones(mib << 18, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = 0.0
    for _ in range(3):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(times):
            target.copy_(source)
        synchronize(device)
        best = max(best, 2 * source.nbytes * times / (time.perf_counter() - started))
    return best
