"""Steps against what the device allows: reading everything once, or computing it.

    floor = max(bytes / copy bandwidth, FLOP / matrix product rate)
    bytes = weights + keys and values of the prefixes
    FLOP  = tokens x (2 per weight + 4 per number of a head's query, layer and column it attends to)

A decoding step of few tokens can be no faster than memory: everything has to come from there, and
what is computed hides behind it. One of many, R requests with K candidates each, can be no faster
than its products. Embedding tables of which a step reads a few rows do not count; an output
embedding does. The bandwidth is that of copying a large buffer on the same device, bytes read plus
bytes written per second; the rate is the best of large square matrix products in the same dtype.

Policies are measured by the scorer's own step with one candidate per request under an output
embedding: one decoding step with keys and values cached, as an engine would replay it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lenvm_rl.guidance import History
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.model import LengthValueConfig, LengthValueModel
from scripts.bench.hardware import Shape, synchronize

_WARM_UP = 3  # steps: the prompts, a capture, a replay
BARS = {"lenvm_to_floor": 1.5, "overhead": 1.3}
"""Most that a row's figures may be."""
GAMMA = 0.99


FLOOR_SHAPES = {
    "lenvm": Shape(1536, 28, 12, 2, 8960, 151_936),  # 1.5 B, as Qwen2.5-1.5B
    "policy": Shape(3584, 28, 28, 4, 18_944, 152_064),  # 7 B, as Qwen2.5-7B
}


class OutputEmbedding(nn.Module):
    """The largest logit of a hidden state, in a value head's place: reads all of the embedding."""

    def __init__(self, hidden: int, vocab: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab, hidden) * hidden**-0.5)
        self.width = ()  # one output a state, as of a value head

    def outputs(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight).amax(-1).float()

    forward = outputs


def make_model(
    shape: Shape, *, device: str, dtype: torch.dtype, context: int, is_policy: bool
) -> LengthValueModel:
    """Random weights of a shape; a policy has an output embedding for a head."""
    trunk = shape.config("qwen2", context=2 * context + 1024)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LengthValueModel(LengthValueConfig(text_config=trunk, gamma=GAMMA))
            if is_policy:
                model.score = OutputEmbedding(shape.hidden, shape.vocab)
    finally:
        torch.set_default_dtype(usual)
    return model.eval().to(dtype)


def step_bytes(model: LengthValueModel, prefix_tokens: int) -> int:
    """What a step has to read at least once: weights but the embedding table, and keys and values
    of `prefix_tokens` tokens of all requests together."""
    weights = sum(x.nbytes for x in {id(p): p for p in model.parameters()}.values())
    weights -= model.get_input_embeddings().weight.nbytes
    trunk = model.model.config
    head = getattr(trunk, "head_dim", None) or trunk.hidden_size // trunk.num_attention_heads
    element = next(model.parameters()).element_size()
    per_token = 2 * trunk.num_hidden_layers * trunk.num_key_value_heads * head * element
    return weights + prefix_tokens * per_token


def step_flops(model: LengthValueModel, tokens: int, context: int) -> float:
    """FLOP of a step of so many tokens, each of which attends to `context` columns and itself."""
    weights = sum(x.numel() for x in {id(p): p for p in model.parameters()}.values())
    weights -= model.get_input_embeddings().weight.numel()
    trunk = model.model.config
    head = getattr(trunk, "head_dim", None) or trunk.hidden_size // trunk.num_attention_heads
    attention = 4 * trunk.num_hidden_layers * trunk.num_attention_heads * head * (context + 1)
    return float(tokens) * (2 * weights + attention)


def step_ms(
    model: LengthValueModel, *, requests: int, candidates: int, context: int, steps: int
) -> float:
    """Milliseconds of a step of the exact scorer, the median; every step waits for the one before,
    as the next token is sampled from it."""
    device = model.device
    scorer = ExactScorer(
        model,
        slots=requests,
        max_length=context + _WARM_UP + steps + 1,
        max_candidates=candidates,
        chunk_tokens=8192,
    )
    prompt = torch.randint(2, model.config.vocab_size, (context,)).tolist()
    histories = [History(prompt, []) for _ in range(requests)]
    slots = [scorer.open(history) for history in histories]
    mask = torch.ones(requests, candidates, dtype=torch.bool, device=device)
    seconds = []
    for step in range(_WARM_UP + steps):
        drawn = torch.randint(2, model.config.vocab_size, mask.shape)
        there = drawn.to(device)
        synchronize(device)
        started = time.perf_counter()
        scorer.score(slots, histories, there, mask)
        synchronize(device)
        if step >= _WARM_UP:
            seconds.append(time.perf_counter() - started)
        for row, history in enumerate(histories):
            history.output.append(int(drawn[row, step % candidates]))
    return 1e3 * statistics.median(seconds)


def against_the_floor(
    *,
    device: str,
    dtype: torch.dtype,
    requests: list[int],
    candidates: int,
    context: int,
    steps: int,
    shapes: dict[str, Shape],
    bandwidth: float,
    rate: float,
    advance: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """One row per number of requests: step, floor and ratio of both models, expected overhead.
    `bound` is what the floor comes from, memory or products.

    `overhead` is (policy + LenVM) / policy of the measured steps; `overhead_at_floor` takes the
    policy at its floor, an engine that no engine can beat.
    """
    rows: dict[int, dict[str, Any]] = {n: {"requests": n} for n in requests}
    for name in ("policy", "lenvm"):
        is_policy = name == "policy"
        model = make_model(
            shapes[name], device=device, dtype=dtype, context=context, is_policy=is_policy
        )
        for n in requests:
            width = 1 if is_policy else candidates
            ms = step_ms(model, requests=n, candidates=width, context=context, steps=steps)
            memory = 1e3 * step_bytes(model, n * context) / bandwidth
            products = 1e3 * step_flops(model, n * width, context) / rate
            floor = max(memory, products)
            rows[n] |= {
                f"{name}_ms": _digits(ms),
                f"{name}_floor_ms": _digits(floor),
                f"{name}_bound": "memory" if memory >= products else "products",
                f"{name}_to_floor": round(ms / floor, 3),
            }
            advance(f"{name}, {n} requests: {ms:.3f} ms, floor {floor:.3f} ms")
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    for row in rows.values():
        ours, theirs, least = row["lenvm_ms"], row["policy_ms"], row["policy_floor_ms"]
        row["overhead"] = round((theirs + ours) / theirs, 3)
        row["overhead_at_floor"] = round((least + ours) / least, 3)
    return list(rows.values())


def _digits(ms: float) -> float:
    """Four significant digits: a small shape's floor is far below a microsecond."""
    return float(f"{ms:.4g}")
