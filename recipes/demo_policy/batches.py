"""Training batches of the demo policy: what is trained on which token, packed by length.

An example is a problem, asked in one of the ways that users ask, and one written response; the loss
is on the response, EOS included, but for slips. Batch `i` depends on (seed, i) alone, so a resumed
run sees what an unbroken one would.
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

    steps: int = 4000
    """optimiser steps"""
    responses: int = 64
    """responses per step"""
    products: float = 0.4
    """share of product problems"""
    no_thinking: float = 0.12
    """share of problems that are asked without thinking"""
    asked_length: float = 0.15
    """share of problems with a length that is asked for, and not heeded"""
    learning_rate: float = 3e-3
    """peak of the AdamW learning rate"""
    warmup: int = 200
    """steps of linear warm-up"""
    decay_share: float = 0.45
    """share of the steps, at the end, over which the learning rate falls to zero"""
    curriculum: int = 600
    """steps over which operands grow from 2 digits to 4"""
    reordered_until: int = 2000
    """steps in which second looks take the operands in another order, which makes the policy look
    them up in the question; it never learns to keep count of them, so that later ones do not"""
    weight_decay: float = 0.05
    """AdamW weight decay of the matrices"""
    micro_tokens: int = 2048
    """padded tokens per forward pass"""
    seed: int = 0
    """seed of the weights and of every batch"""


@dataclass(frozen=True)
class Example:
    """One training row."""

    messages: list[dict[str, str]]
    """the question, as chat messages"""
    pieces: list[solutions.Piece]
    """the response, without EOS"""


@dataclass(frozen=True)
class MicroBatch:
    """Padded rows of one forward pass."""

    ids: torch.Tensor
    """token ids [b, t]; right padding needs no attention mask, as no token sees what follows it"""
    labels: torch.Tensor
    """the token itself where it has a loss, `IGNORE` elsewhere [b, t]"""
    total: int
    """labels of the whole batch"""


def make_examples(step: int, config: TrainConfig) -> list[Example]:
    """The examples of batch `step`."""
    rng = random.Random(f"lenvm-demo-train-{config.seed}-{step}")
    grown = min(1.0, step / max(1, config.curriculum))
    most = 2 + math.floor((task.MAX_DIGITS - 2) * grown)
    examples = []
    for _ in range(config.responses):
        family = "products" if rng.random() < config.products else "sums"
        low, high = (1, task.MAX_PRODUCTS) if family == "products" else (2, task.MAX_OPERANDS)
        problem = task.random_problem(
            rng, family=family, digits=rng.randint(1, most), parts=rng.randint(low, high)
        )
        thinking = rng.random() >= config.no_thinking
        tokens = rng.randint(5, 500) if rng.random() < config.asked_length else None
        messages = task.messages(problem, thinking=thinking, tokens=tokens)
        pieces = solutions.write(
            problem, rng, thinking=thinking, reordered=step < config.reordered_until
        )
        examples.append(Example(messages, pieces))
    return examples


def micro_batches(
    step: int, config: TrainConfig, tokenizer: PreTrainedTokenizerFast
) -> list[MicroBatch]:
    """Batch `step` cut into pieces of at most `micro_tokens` padded tokens, shortest rows first."""
    rows = [encode(example, tokenizer) for example in make_examples(step, config)]
    rows.sort(key=lambda row: len(row[0]))
    total = sum(sum(x != IGNORE for x in labels) for _, labels in rows)
    pieces, start = [], 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or len(rows[end][0]) * (end + 1 - start) > config.micro_tokens:
            ids, labels = zip(*rows[start:end], strict=True)
            pieces.append(MicroBatch(_pad(ids, 0), _pad(labels, IGNORE), total))
            start = end
    return pieces


def encode(example: Example, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids and labels of one example, of equal length."""
    prompt = tokenizer.apply_chat_template(
        example.messages, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    ids, labels = list(prompt), [IGNORE] * len(prompt)
    for piece in example.pieces:
        tokens = tokenizer(piece.text)["input_ids"]
        ids += tokens
        labels += [IGNORE] * len(tokens) if piece.is_slip else tokens
    return [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]


def _pad(rows: Sequence[list[int]], value: int) -> torch.Tensor:
    """Rows sorted by length, padded on the right to the last one's length."""
    padded = torch.full((len(rows), len(rows[-1])), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded
