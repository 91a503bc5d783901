"""Sizes of the training-speed benchmark, and the completions of one step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lenvm_rl.rollouts import Rollout, RolloutReader
from scripts.bench.hardware import Shape


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sizes of one benchmark: trunk (Qwen2 architecture), data and hardware."""

    shape: Shape
    """Of the trunk."""
    device: str
    """cpu or cuda."""
    precision: str
    """What matrices are multiplied in: fp32 or bf16; the optimiser updates float32 weights."""
    response_mean: float
    """Tokens; response lengths are log-normal."""
    response_std: float
    prompt_mean: float
    prompt_std: float
    row_tokens: int
    """Longest prompt plus response in tokens; longer ones are drawn again."""
    rows: int
    """Completions per optimiser step."""
    micro_tokens: int
    """Most tokens of a packed micro-batch, >= row_tokens."""
    padded_rows: int = 8
    """Completions per micro-batch of the padded trainer."""
    matmul_size: int = 2048
    """Side of the square matrices whose product gives the ceiling."""


PRESETS = {
    "cpu-25m": Preset(
        shape=Shape(512, 6, 8, 2, 2304, 32_768),
        device="cpu",
        precision="fp32",
        response_mean=250,
        response_std=150,
        prompt_mean=60,
        prompt_std=20,
        row_tokens=1024,
        rows=32,
        micro_tokens=4096,
    ),
    "gpu-1.5b": Preset(
        shape=Shape(1536, 28, 12, 2, 8960, 151_936),
        device="cuda",
        precision="bf16",
        response_mean=1000,
        response_std=600,
        prompt_mean=150,
        prompt_std=60,
        row_tokens=8192,
        rows=128,
        micro_tokens=16_384,
        matmul_size=8192,
    ),
}
"""cpu-25m: 25 million parameters without the embedding. gpu-1.5b: the shape of Qwen2.5-1.5B."""


def trunk_parameters(shape: Shape) -> int:
    """Weights of the trunk's matrices, without embedding, norms and biases."""
    head = shape.hidden // shape.heads
    attention = 2 * shape.hidden * head * (shape.heads + shape.kv_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def training_flops(preset: Preset, lengths: Iterable[int]) -> float:
    """Floating-point operations that training the trunk on these sequences needs, in FLOP.

    Forward: 2 per weight and token, and causal attention, 2 products of 2 * H * n**2 / 2 per layer
    for a sequence of n tokens; backward is twice that. What a trainer does besides (padding,
    masked-out attention, LM head, optimiser) is not counted.
    """
    lengths = list(lengths)
    dense = 2 * trunk_parameters(preset.shape) * sum(lengths)
    attention = 2 * preset.shape.layers * preset.shape.hidden * sum(n * n for n in lengths)
    return 3.0 * (dense + attention)


def drawn_lengths(preset: Preset, rows: int, seed: int) -> np.ndarray:
    """(prompt tokens, response tokens) of `rows` completions, log-normal, [rows, 2]."""
    rng = np.random.default_rng(seed)
    kept: list[tuple[int, int]] = []
    while len(kept) < rows:
        prompt = 1 + int(_log_normal(rng, preset.prompt_mean, preset.prompt_std))
        response = 1 + int(_log_normal(rng, preset.response_mean, preset.response_std))
        if prompt + response <= preset.row_tokens:
            kept.append((prompt, response))
    return np.array(kept)


def _log_normal(rng: np.random.Generator, mean: float, std: float) -> float:
    variance = math.log1p((std / mean) ** 2)
    return rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance))


def file_lengths(path: Path, preset: Preset) -> tuple[np.ndarray, int]:
    """Lengths of a rollout file [rows, 2], and how many rows were too long for the preset.

    Raises:
        ValueError: fewer rows fit than one step needs.
    """
    pairs = np.array(
        [
            (len(row["prompt_ids"]), len(row["response_ids"]))
            for row in RolloutReader(path).iter_rows(["prompt_ids", "response_ids"])
        ]
    ).reshape(-1, 2)
    kept = pairs[pairs.sum(1) <= preset.row_tokens]
    if len(kept) < preset.rows:
        raise ValueError(
            f"{path} has {len(kept)} completions of at most {preset.row_tokens} tokens, but one "
            f"step takes {preset.rows}. Give a larger file, or a smaller --rows."
        )
    return kept, len(pairs) - len(kept)


def make_rows(lengths: Sequence[Sequence[int]], vocab_size: int, seed: int) -> list[Rollout]:
    """Completions of the given lengths out of random tokens: speed does not read them."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, (prompt, response) in enumerate(lengths):
        ids = rng.integers(2, vocab_size, size=prompt + response).tolist()
        rows.append(
            Rollout(
                prompt_id=f"p{i}",
                sample_id=0,
                prompt_ids=ids[:prompt],
                response_ids=[*ids[prompt:-1], 1],
                finish_reason="stop",
            )
        )
    return rows
