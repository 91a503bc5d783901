"""What does a LenVM say about these prompts, or along these responses? Plain rows of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lenvm_rl.core import predicted_length, value_of_logit
from lenvm_rl.evals.sampling import prompt_row
from lenvm_rl.evals.values import config_space, iter_logits
from lenvm_rl.model import (
    LengthValueConfig,
    LengthValueModel,
    check_tokenizer,
    find_lenvm,
    load_tokenizer,
)
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.rollouts.prompts import Prompt

StateLogits = Callable[[Iterable[Rollout]], Iterable[tuple[Rollout, Tensor]]]
"""Rows to (row, z at its states s_0 .. s_{L-1}), in any order: `iter_logits`, or an engine."""


def predict_prompts(
    lenvm: str | Path, prompts: Sequence[Prompt], *, logits: StateLogits | None = None
) -> Iterator[dict[str, Any]]:
    """Value and length (tokens, EOS included) of the response to every prompt, in order.

    Args:
        lenvm: directory of the LenVM.
        prompts: chat messages.
        logits: computes z in place of the model in this process, e.g. an engine that serves it.
    Raises:
        ValueError: not a LenVM, a LenVM without gamma, a prompt longer than its context.
    """
    config, logits = _source(lenvm, logits)
    tokenizer = load_tokenizer(find_lenvm(lenvm))
    check_tokenizer(config, tokenizer)
    # The token that stands for the response is never fed: the state s_0 is what is asked about.
    rows = (prompt_row(tokenizer, prompt) for prompt in prompts)
    by_name = {
        row.prompt_id: {
            "prompt_id": row.prompt_id,
            "prompt_tokens": len(row.prompt_ids),
            "value": value_of_logit(z[:1], **config_space(config)).item(),
            "length": predicted_length(z[:1], **config_space(config)).item(),
        }
        for row, z in logits(rows)
    }
    return (by_name[prompt.prompt_id] for prompt in prompts)


def predict_rollouts(
    lenvm: str | Path, rollouts: str | Path, *, logits: StateLogits | None = None
) -> Iterator[dict[str, Any]]:
    """Remaining lengths (tokens) at s_0 .. s_{L-1} of every completion of a rollout file.

    Args:
        lenvm: directory of the LenVM.
        rollouts: rollout file.
        logits: see `predict_prompts`.
    Raises:
        ValueError: not a LenVM, a file of another tokenizer, a row longer than the context.
    """
    config, logits = _source(lenvm, logits)
    sha = (config.policy or {}).get("tokenizer_sha")
    for row, z in logits(RolloutReader(rollouts, tokenizer_sha=sha).iter_rows()):
        lengths = predicted_length(z, **config_space(config))
        yield {
            "prompt_id": row.prompt_id,
            "sample_id": row.sample_id,
            "finish_reason": row.finish_reason,
            "tokens": row.length,
            "remaining_lengths": [round(value, 2) for value in lengths.tolist()],
        }


def _source(lenvm: str | Path, logits: StateLogits | None) -> tuple[LengthValueConfig, StateLogits]:
    """What the checkpoint says about its logits, and where they come from."""
    if logits is not None:
        return LengthValueConfig.from_pretrained(find_lenvm(lenvm)), logits
    model = LengthValueModel.from_pretrained(lenvm)
    return model.config, partial(iter_logits, model)
