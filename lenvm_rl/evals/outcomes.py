"""Outcomes of sampled completions: length, correctness, and how far the text left the policy.

The same few numbers for guided and unguided completions, so that evaluations compare like with
like. Lengths here are response tokens without EOS, the count that targets ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.sampling.run import forced_end

Grader = Callable[[str, str], bool]
"""(response text, ground truth) -> correct or wrong; never raises."""

_PASS_TOKENS = 16_384  # padded tokens per forward pass of the policy


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One completion, measured."""

    prompt: int
    """Index of its prompt."""
    token_ids: Sequence[int] = ()
    """Of the response, without EOS."""
    text: str = ""
    """The same as text."""
    ended: bool = False
    """Whether it ended before the token limit, by itself or because guidance forced EOS."""
    came: bool = True
    """Whether there is a completion at all: False where an engine could not make it."""
    correct: bool | None = None
    """Whether the grader accepts it; an unfinished answer is wrong. None without a grader."""
    logprob: float = math.nan
    """Mean log-probability (nats) of its tokens under the unguided policy, EOS included."""

    @property
    def length(self) -> int:
        """Response tokens without EOS."""
        return len(self.token_ids)


def read_outcomes(
    path: str | Path,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    *,
    policy: Any | None = None,
    grader: Grader | None = None,
    n: int | None = None,
) -> list[Outcome]:
    """Outcomes of a rollout file: `n` of each prompt side by side, missing ones too.

    Args:
        prompts: of which the file holds completions; `ground_truth` is what the grader gets.
        policy: the unguided transformers causal LM; None leaves log-probabilities undefined.
        grader: None judges nothing.
        n: completions of each prompt, sample_id 0 to n - 1; None: as many as the file has.
    Raises:
        ValueError: a prompt that is none of `prompts`; and see `RolloutReader`.
    """
    index = {prompt.prompt_id: i for i, prompt in enumerate(prompts)}
    reader = RolloutReader(path)
    rows: dict[tuple[int, int], Rollout] = {}
    for row in reader.iter_rows():
        if row.prompt_id not in index:
            raise ValueError(
                f"{path} holds completions of prompt {row.prompt_id!r}, which is not among the "
                f"{len(prompts)} prompts given: name the prompts that it was sampled from."
            )
        rows[index[row.prompt_id], row.sample_id] = row
    if n is None:
        n = 1 + max(sample_id for _, sample_id in rows)
    keys = [(i, k) for i in range(len(prompts)) for k in range(n)]
    logprobs = dict.fromkeys(rows, math.nan)
    if policy is not None:
        found = [key for key in keys if key in rows]
        eos = list(reader.metadata["eos_ids"] or ())[:1]
        texts = [(rows[key].prompt_ids, _with_end(rows[key], eos)) for key in found]
        logprobs |= zip(found, policy_logprobs(policy, texts), strict=True)

    def outcome(key: tuple[int, int]) -> Outcome:
        if key not in rows:
            return Outcome(prompt=key[0], came=False, correct=None if grader is None else False)
        row, truth = rows[key], prompts[key[0]].ground_truth
        content = row.response_ids[: row.length - (row.finish_reason == "stop")]
        ended, correct = row.finish_reason == "stop" or forced_end(row), None
        if grader is not None:
            text = tokenizer.decode(row.response_ids, skip_special_tokens=True)
            correct = ended and truth is not None and bool(grader(text, truth))
        return Outcome(
            prompt=key[0],
            token_ids=content,
            text=tokenizer.decode(content, skip_special_tokens=True),
            ended=ended,
            correct=correct,
            logprob=logprobs[key],
        )

    return [outcome(key) for key in keys]


def _with_end(row: Rollout, eos: Sequence[int]) -> list[int]:
    """Response tokens with the EOS that guidance forced, which is not in the row."""
    return [*row.response_ids, *(eos if forced_end(row) else ())]


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


def mean(values: Sequence[float | bool | None]) -> float:
    """Mean of those that are defined; NaN where none is."""
    known = [x for x in values if x is not None and not math.isnan(x)]
    return sum(known) / len(known) if known else math.nan
