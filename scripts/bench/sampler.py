"""Continuous batching beside `transformers.generate` on a long tail of lengths.

    python -m scripts.bench sampler --json sampler.json

A random Qwen2 model (hidden 128, 4 layers) writes completions whose lengths are drawn from a
log-normal law (median 49, p90 133, cut at 400 tokens) and forced on both samplers: ours by the
token limit of each request, `generate` by a logits processor that makes EOS certain. `generate`
takes the requests in batches as they come, as nobody knows the lengths beforehand. CPU time of one
thread is compared by default, so that other work on the machine does not blur the ratio.

Beside it, whether sampler and scorer could share one store of keys and values: the attention of a
decoding step over rows of the same law, by the sampler's slots (`slot_cache`) and by the scorer's
(`guidance.exact`), which packs rows into one and keeps a token's heads together.

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor

from lenvm_rl.guidance.exact.attention import Pass, Segment
from lenvm_rl.guidance.exact.cache import ALIGN, KeyValueShape, KeyValueStore
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request
from lenvm_rl.sampling.transformers.slot_cache import SlotCache, decode_plan, slot_attention
from scripts.bench import harness
from scripts.bench.hardware import Shape

EOS, VOCAB, LONGEST = 1, 64, 400


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """The load and the model."""

    requests: int = 1024
    """Completions to sample."""
    batch: int = 128
    """Rows together."""
    hidden: int = 128
    """Width of the model."""
    layers: int = 4
    """Its layers."""
    threads: int = 1
    """1 compares CPU time."""
    seed: int = 0
    """Of weights, lengths and prompts."""


def run(options: Options) -> dict[str, Any]:
    """Tokens per second of both."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    heads = options.hidden // 32
    shape = Shape(options.hidden, options.layers, heads, heads, 3 * options.hidden, VOCAB)
    config = shape.config("qwen2", context=1024, eos_token_id=EOS, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval()
    count = options.requests
    lengths = torch.empty(count).log_normal_(mean=3.9, std=0.78).long().clamp(5, LONGEST)
    prompts = [
        torch.randint(2, VOCAB, (n,)).tolist() for n in torch.randint(5, 30, (count,)).tolist()
    ]
    ours = seconds_of(lambda: continuous(model, prompts, lengths, options.batch), clock)
    theirs = seconds_of(lambda: in_batches(model, prompts, lengths, options.batch), clock)
    tokens = int(lengths.sum())
    return {
        "continuous_tokens_per_s": tokens / ours,
        "generate_tokens_per_s": tokens / theirs,
        "ratio": theirs / ours,
        "step_ms": attention_of_a_step(lengths[: options.batch] + 20, heads, options.layers, clock),
        "tokens": tokens,
        "mean_length": tokens / count,
        "time": "CPU seconds" if options.threads == 1 else "wall seconds",
    }


def seconds_of(work: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def continuous(model, prompts: list[list[int]], lengths: torch.Tensor, batch: int) -> None:
    """All requests in the order given: `generate()` would start the longest first."""
    sampler = ContinuousSampler(model, eos_token_ids=[], max_batch=batch)
    for i, (prompt, length) in enumerate(zip(prompts, lengths.tolist(), strict=True)):
        sampler.submit(Request(prompt, length, seed=i), i)
    while sampler.pending:
        sampler.step()


@torch.inference_mode()
def in_batches(model, prompts: list[list[int]], lengths: torch.Tensor, batch: int) -> None:
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        width = max(map(len, rows))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        model.generate(
            padded,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=LONGEST,
            logits_processor=[EndAt(lengths[start : start + batch], width)],
        )


class EndAt(LogitsProcessor):
    """EOS is impossible before each row's length, and certain there."""

    def __init__(self, lengths: torch.Tensor, prompt_width: int):
        self.lengths, self.prompt_width = lengths, prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = input_ids.shape[1] - self.prompt_width + 1 >= self.lengths
        eos = torch.arange(scores.shape[1]) == EOS
        return scores.masked_fill(last[:, None] ^ eos[None], -torch.inf)


@torch.inference_mode()
def attention_of_a_step(
    lengths: torch.Tensor, heads: int, layers: int, clock: Callable[[], float], steps: int = 40
) -> dict[str, float]:
    """Milliseconds of keys, values and attention of a step in all layers, by each store; one new
    token for rows of `lengths` tokens, like lengths side by side as the sampler has them."""
    held = lengths.sort(descending=True).values
    rows, dim = len(held), 32
    shape = (rows, heads, 1, dim)
    query, key, value = (torch.randn(shape) for _ in range(3))
    limit = int(held.max()) + 1
    slots = SlotCache(rows, capacity=limit, limit=limit)
    store = KeyValueStore(
        [KeyValueShape(heads, dim, dim, torch.float32)] * layers,
        slots=rows,
        capacity=-(-limit // ALIGN) * ALIGN,
        device="cpu",
    )
    for i, n in enumerate(held.tolist()):
        store.grow(i, n + 1)
    packed = [x[:, :, 0].transpose(0, 1)[None].contiguous() for x in (query, key, value)]
    module = SimpleNamespace()

    def by_slots() -> None:
        plan = decode_plan(held, torch.float32)
        slots.begin_decode(plan)
        for layer in range(layers):
            seen = slots.update(key, value, layer)
            slot_attention(module, query, *seen, None, slot_plan=plan)

    def by_store() -> None:
        step = Pass(store, [Segment(i, n, 1, 0) for i, n in enumerate(held.tolist())])
        for layer in range(layers):
            step.attend(layer, *packed, scaling=None, window=None)

    timed = {}
    for name, work in (("slots", by_slots), ("store", by_store)):
        work()
        timed[name] = 1000 * seconds_of(lambda work=work: [work() for _ in range(steps)], clock)
    return {name: spent / steps for name, spent in timed.items()}
