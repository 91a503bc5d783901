"""Training batches of the demo policy: what is trained on which token, packed by length.

Three kinds of example:

    responses  a problem and one written response; the loss is on the response, EOS included.
    drills     a problem and the bare answer; the loss is on the number alone. Drills teach what a
               bare answer must be without making bare answers frequent, because nothing trains the
               choice to give one.
    facts      unrelated one-step results in the words of the terse or the wordy style; the loss is
               on the results alone. They come late, when the policy can already find its way
               through a chain, and make its arithmetic exact.

Batch `i` depends on (seed, i) alone, so a resumed run sees what an unbroken one would.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from lenvm_rl.demo import task
from recipes.demo_policy import solutions

IGNORE = -100  # the label of a token without loss


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run; the defaults made the shipped policy."""

    steps: int = 3200
    """optimiser steps"""
    responses: int = 32
    """responses per step"""
    drills: int = 64
    """drills per step"""
    facts: int = 32
    """rows of facts per step"""
    facts_from: int = 2200
    """first step that has facts"""
    drill_weight: float = 4.0
    """weight of a drill's or a fact's loss token against a response token"""
    learning_rate: float = 3e-3
    """peak of the AdamW learning rate"""
    warmup: int = 200
    """steps of linear warm-up"""
    decay_share: float = 0.3
    """share of the steps, at the end, over which the learning rate falls to zero"""
    curriculum: int = 600
    """steps over which the longest chain grows from 4 to 12 operands"""
    weight_decay: float = 0.05
    """AdamW weight decay of the matrices"""
    micro_tokens: int = 2048
    """padded tokens per forward pass"""
    seed: int = 0
    """seed of the weights and of every batch"""


@dataclass(frozen=True)
class Example:
    """One training row: prompt and completion text, and what kind it is."""

    kind: str
    """`response`, `drill` or `fact`"""
    prompt: str | None
    """the question, None for facts"""
    text: str
    """the completion, without EOS"""


@dataclass(frozen=True)
class MicroBatch:
    """Padded rows of one forward pass; weights sum to 1 over the labels of the whole batch."""

    ids: torch.Tensor
    """token ids [b, t]; right padding needs no attention mask, as no token sees what follows it"""
    labels: torch.Tensor
    """the token itself where it has a loss, `IGNORE` elsewhere [b, t]"""
    weights: torch.Tensor
    """weight of each row's labels [b, 1]"""
    kinds: list[str]
    """kind of each row [b]"""


def make_examples(step: int, config: TrainConfig) -> list[Example]:
    """The examples of batch `step`: the responses, then the drills, then the facts."""
    rng = random.Random(f"lenvm-demo-train-{config.seed}-{step}")
    longest = task.MAX_OPERANDS
    if step < config.curriculum:
        longest = 4 + math.floor((task.MAX_OPERANDS - 4) * step / config.curriculum)
    examples = []
    for _ in range(config.responses):
        problem = task.random_problem(rng, rng.randint(task.MIN_OPERANDS, longest))
        examples.append(Example("response", problem.text, solutions.write(problem, rng)))
    for _ in range(config.drills):
        # Half of the drills are short chains: those are the ones that can be learned.
        top = min(longest, 5) if rng.random() < 0.5 else longest
        problem = task.random_problem(rng, rng.randint(task.MIN_OPERANDS, top))
        examples.append(Example("drill", problem.text, solutions.bare(problem.answer)))
    if step >= config.facts_from:
        for row in range(config.facts):
            text = solutions.facts(rng, 8 if row % 2 else 5, spelled_out=row % 2 == 0)
            examples.append(Example("fact", None, text))
    return examples


def micro_batches(
    step: int, config: TrainConfig, tokenizer: PreTrainedTokenizerFast
) -> list[MicroBatch]:
    """Batch `step` cut into pieces of at most `micro_tokens` padded tokens, shortest rows first."""
    rows = [
        (
            *encode(example, tokenizer),
            1.0 if example.kind == "response" else config.drill_weight,
            example.kind,
        )
        for example in make_examples(step, config)
    ]
    rows.sort(key=lambda row: len(row[0]))
    total = sum(weight * sum(x != IGNORE for x in labels) for _, labels, weight, _ in rows)
    pieces, start = [], 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or len(rows[end][0]) * (end + 1 - start) > config.micro_tokens:
            ids, labels, weights, kinds = zip(*rows[start:end], strict=True)
            pieces.append(
                MicroBatch(
                    _pad(ids, 0),
                    _pad(labels, IGNORE),
                    torch.tensor(weights)[:, None] / total,
                    list(kinds),
                )
            )
            start = end
    return pieces


def encode(example: Example, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids and labels of one example, of equal length."""
    ids = tokenizer(example.text)["input_ids"]
    if example.kind == "fact":
        results = tokenizer.convert_tokens_to_ids(["▁=", "▁get"])
        labels = [
            token if before in results else IGNORE
            for before, token in zip([IGNORE, *ids], ids, strict=False)
        ]
        return ids, labels
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": example.prompt}],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    if example.kind == "drill":  # the number is the last token
        labels = [IGNORE] * (len(ids) - 1) + ids[-1:]
    else:
        ids = [*ids, tokenizer.eos_token_id]
        labels = ids
    return prompt + ids, [IGNORE] * len(prompt) + labels


def _pad(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    """Rows sorted by length, padded on the right to the last one's length."""
    padded = torch.full((len(rows), len(rows[-1])), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded
