"""Predictions of a LenVM about prompts, or along responses, as plain rows of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lenvm_rl.core import predicted_length, value_of_logit
from lenvm_rl.model import (
    LengthValueConfig,
    LengthValueModel,
    check_tokenizer,
    find_lenvm,
    load_tokenizer,
)
from lenvm_rl.model.forward import check_readable, config_space, iter_logits
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.sampling.encoding import prompt_row

StateLogits = Callable[[Iterable[Rollout]], Iterable[tuple[Rollout, Tensor]]]
"""Rows to (row, z at its states s_0 .. s_{L-1}), in any order: `iter_logits`, or an engine."""


def predict_prompts(
    lenvm: str | Path,
    prompts: Sequence[Prompt],
    *,
    logits: StateLogits | None = None,
    chat_template_args: dict[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Value and length (tokens, EOS included) of the response to every prompt, in order.

    Args:
        lenvm: directory of the LenVM.
        prompts: chat messages.
        logits: computes z in place of the model in this process, e.g. an engine that serves it.
        chat_template_args: what the chat template gets besides the messages.
    Returns:
        A row per prompt; one that cannot be predicted (the chat template refuses it, it does not
        fit the LenVM) has `error` in place of the numbers.
    Raises:
        ValueError: not a LenVM, or a LenVM without gamma.
    """
    config, logits = _source(lenvm, logits)
    tokenizer = load_tokenizer(find_lenvm(lenvm), chat_template_args=chat_template_args)
    check_tokenizer(config, tokenizer)
    # The token that stands for the response is never fed: the state s_0 is what is asked about.
    by_name: dict[str, dict[str, Any]] = {}

    def readable() -> Iterator[Rollout]:
        for prompt in prompts:
            try:
                row = prompt_row(tokenizer, prompt)
                check_readable(config, row)
            except ValueError as error:  # of this prompt: the others are not concerned
                by_name[prompt.prompt_id] = {"prompt_id": prompt.prompt_id, "error": str(error)}
            else:
                yield row

    for row, z in logits(readable()):
        by_name[row.prompt_id] = {
            "prompt_id": row.prompt_id,
            "prompt_tokens": len(row.prompt_ids),
            "value": value_of_logit(z[:1], **config_space(config)).item(),
            "length": predicted_length(z[:1], **config_space(config)).item(),
        }
    return (by_name[prompt.prompt_id] for prompt in prompts)


def predict_rollouts(
    lenvm: str | Path, rollouts: str | Path, *, logits: StateLogits | None = None
) -> Iterator[dict[str, Any]]:
    """Remaining lengths (tokens) at s_0 .. s_{L-1} of every completion of a rollout file; `error`
    in their place where the LenVM cannot read it.

    Args:
        lenvm: directory of the LenVM.
        rollouts: rollout file.
        logits: see `predict_prompts`.
    Raises:
        ValueError: not a LenVM, or a file of another tokenizer.
    """
    config, logits = _source(lenvm, logits)
    sha = (config.policy or {}).get("tokenizer_sha")
    refused: list[dict[str, Any]] = []

    def readable() -> Iterator[Rollout]:
        for row in RolloutReader(rollouts, tokenizer_sha=sha).iter_rows():
            try:
                check_readable(config, row)
            except ValueError as error:
                refused.append({**_named(row), "error": str(error)})
            else:
                yield row

    for row, z in logits(readable()):
        lengths = predicted_length(z, **config_space(config))
        yield {**_named(row), "remaining_lengths": [round(x, 2) for x in lengths.tolist()]}
        yield from refused
        refused.clear()
    yield from refused


def _named(row: Rollout) -> dict[str, Any]:
    return {
        "prompt_id": row.prompt_id,
        "sample_id": row.sample_id,
        "finish_reason": row.finish_reason,
        "tokens": row.length,
    }


def _source(lenvm: str | Path, logits: StateLogits | None) -> tuple[LengthValueConfig, StateLogits]:
    """What the checkpoint says about its logits, and where they come from."""
    if logits is not None:
        return LengthValueConfig.from_pretrained(find_lenvm(lenvm)), logits
    model = LengthValueModel.from_pretrained(lenvm)
    return model.config, partial(iter_logits, model)
