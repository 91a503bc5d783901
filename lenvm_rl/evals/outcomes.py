"""What became of sampled completions? Length, correctness, and how far the text left the policy.

The same few numbers for guided and unguided completions, so that evaluations of control compare
like with like. Lengths here are response tokens without EOS, the count that targets ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.sampling.transformers.sampler import Completion

Grader = Callable[[str, str], bool]
"""(response text, ground truth) -> right or wrong; never raises."""

_PASS_TOKENS = 16_384  # padded tokens per forward pass of the policy


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One completion, measured."""

    prompt: int
    """Index of its prompt."""
    length: int
    """Response tokens without EOS."""
    ended: bool
    """Whether EOS came before the token limit."""
    right: bool | None
    """Whether the grader accepts it; an unfinished answer is wrong. None without a grader."""
    logprob: float
    """Mean log-probability (nats) of its tokens under the unguided policy, EOS included."""


def share_right(judged: Sequence[bool | None]) -> float:
    """Accuracy; NaN where nothing was judged."""
    known = [right for right in judged if right is not None]
    return sum(known) / len(known) if known else math.nan


def measure(
    policy: Any | None,
    tokenizer: Any,
    prompt_ids: Sequence[Sequence[int]],
    ground_truths: Sequence[str | None],
    completions: Sequence[tuple[int, Completion]],
    grader: Grader | None,
) -> list[Outcome]:
    """Outcomes of `completions`, given as (index of the prompt, completion), in their order.

    Args:
        policy: the unguided transformers causal LM; None leaves log-probabilities undefined.
        grader: None judges nothing.
    """
    logprobs = [math.nan] * len(completions)
    if policy is not None:
        rows = [(prompt_ids[i], completion.token_ids) for i, completion in completions]
        logprobs = policy_logprobs(policy, rows)
    outcomes = []
    for (index, completion), logprob in zip(completions, logprobs, strict=True):
        ended = completion.finish_reason == "stop"
        truth = ground_truths[index]
        text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        outcomes.append(
            Outcome(
                prompt=index,
                length=len(completion.token_ids) - ended,
                ended=ended,
                right=None if grader is None else _right(grader, text, truth, ended),
                logprob=logprob,
            )
        )
    return outcomes


def _right(grader: Grader, text: str, truth: str | None, ended: bool) -> bool:
    return ended and truth is not None and bool(grader(text, truth))


@torch.inference_mode()
def policy_logprobs(
    policy: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """Mean log-probability (nats per token, temperature 1) of each response given its prompt.

    Args:
        policy: a transformers causal LM.
        rows: (prompt ids, response ids), each with at least one token.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    means = [0.0] * len(rows)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order):
            longest = sum(map(len, rows[order[stop]]))
            if (stop + 1 - start) * longest > _PASS_TOKENS:
                break
            stop += 1
        batch = order[start:stop]
        for i, mean in zip(batch, _mean_logprobs(policy, [rows[i] for i in batch]), strict=True):
            means[i] = mean
        start = stop
    return means


def _mean_logprobs(policy: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """One padded pass; padding comes last, so causal attention never sees it."""
    device = next(policy.parameters()).device
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
    for i, (prompt, response) in enumerate(rows):
        ids[i, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
        mask[i, len(prompt) - 1 : len(prompt) + len(response) - 1] = True
    ids, mask = ids.to(device), mask.to(device)
    logits = policy(input_ids=ids[:, :-1], use_cache=False).logits.float()
    taken = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
    return (taken.masked_fill(~mask, 0).sum(1) / mask.sum(1)).tolist()


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that k of the samples, drawn without replacement, hold a right one.

        1 - C(n - c, k) / C(n, k)

    The unbiased estimate of pass@k from n samples of which c are right (Chen et al., 2107.03374).

    Raises:
        ValueError: k outside [1, n], or c outside [0, n].
    """
    if not 1 <= k <= samples or not 0 <= right <= samples:
        raise ValueError(
            f"pass@{k} of {samples} samples with {right} right is not defined: k must be in "
            f"[1, {samples}] and the right ones in [0, {samples}]."
        )
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def lengths_of(outcomes: Sequence[Outcome]) -> Tensor:
    """[n] float64 lengths in tokens."""
    return torch.tensor([outcome.length for outcome in outcomes], dtype=torch.float64)


def mean_of(outcomes: Sequence[Outcome], name: str) -> float:
    """Mean of one field; NaN over nothing."""
    values = [float(getattr(outcome, name)) for outcome in outcomes]
    return sum(values) / len(values) if values else float("nan")
