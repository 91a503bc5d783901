"""Predictions of a LenVM about prompts, or along responses, as plain rows of numbers.

Every LenVM gives V and a length, the inverse of the mean discounted length. One of the target
`distribution` also gives the mean, quantiles and, of a limit on the response's tokens, the chance
of being truncated: P(l > what is left of the limit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import predicted_length, value_of_logit
from lenvm_rl.model import (
    LengthValueConfig,
    LengthValueModel,
    check_tokenizer,
    find_lenvm,
    load_tokenizer,
)
from lenvm_rl.model.forward import check_readable, config_space, iter_outputs
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.sampling.encoding import prompt_row

StateLogits = Callable[[Iterable[Rollout]], Iterable[tuple[Rollout, Tensor]]]
"""Rows to (row, raw outputs at its states s_0 .. s_{L-1}), in any order: `iter_outputs`, or an
engine."""
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
"""Names of the quantiles in a row."""


def lengths_of(
    outputs: Tensor,
    config: LengthValueConfig,
    *,
    gamma: float | None = None,
    max_tokens: int | None = None,
) -> dict[str, Tensor]:
    """What the outputs at s_0, s_1, ... of one response say, by name, [T] each.

    Args:
        outputs: raw, [T] or [T, K].
        gamma: of `value` and `length`; None is the stored one.
        max_tokens: limit on the response's tokens, EOS included, for `p_truncated`.
    Returns:
        value, length (tokens, EOS included, as all lengths); of a distribution mean, `QUANTILES`,
        and `p_truncated` where there is a limit.
    Raises:
        ValueError: a limit, or another gamma than the stored one, for a LenVM of one gamma.
    """
    z, space = config.read(outputs, gamma=gamma), config_space(config, gamma=gamma)
    found = {"value": value_of_logit(z, **space), "length": predicted_length(z, **space)}
    if config.bins is None and max_tokens is None:
        return found
    lengths = config.require_bins().of(outputs)
    found["mean"] = lengths.mean()
    found |= {name: lengths.quantile(level) for name, level in QUANTILES.items()}
    if max_tokens is not None:
        left = max_tokens - torch.arange(len(z), device=z.device)
        found["p_truncated"] = lengths.longer_than(left)
    return found


def predict_prompts(
    lenvm: str | Path,
    prompts: Sequence[Prompt],
    *,
    outputs: StateLogits | None = None,
    gamma: float | None = None,
    max_tokens: int | None = None,
    chat_template_args: dict[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Value and length (tokens, EOS included) of the response to every prompt, in order.

    Args:
        lenvm: directory of the LenVM.
        prompts: chat messages.
        outputs: computes them in place of the model in this process, e.g. an engine that serves it.
        gamma, max_tokens: see `lengths_of`.
        chat_template_args: what the chat template gets besides the messages.
    Returns:
        A row per prompt; one that cannot be predicted (the chat template refuses it, it does not
        fit the LenVM) has `error` in place of the numbers.
    Raises:
        ValueError: not a LenVM, or a LenVM without gamma; as `lengths_of`.
    """
    config, outputs = _source(lenvm, outputs, gamma, max_tokens)
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

    for row, out in outputs(readable()):
        found = lengths_of(out[:1], config, gamma=gamma, max_tokens=max_tokens)
        by_name[row.prompt_id] = {
            "prompt_id": row.prompt_id,
            "prompt_tokens": len(row.prompt_ids),
            **{name: numbers.item() for name, numbers in found.items()},
        }
    return (by_name[prompt.prompt_id] for prompt in prompts)


def predict_rollouts(
    lenvm: str | Path,
    rollouts: str | Path,
    *,
    outputs: StateLogits | None = None,
    gamma: float | None = None,
    max_tokens: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Remaining lengths (tokens) at s_0 .. s_{L-1} of every completion of a rollout file, and what
    else `lengths_of` gives but values; `error` in their place where the LenVM cannot read it.

    Args:
        lenvm: directory of the LenVM.
        rollouts: rollout file.
        outputs, gamma, max_tokens: see `predict_prompts`.
    Raises:
        ValueError: not a LenVM, or a file of another tokenizer; as `lengths_of`.
    """
    config, outputs = _source(lenvm, outputs, gamma, max_tokens)
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

    for row, out in outputs(readable()):
        found = lengths_of(out, config, gamma=gamma, max_tokens=max_tokens)
        found = {"remaining_lengths": found.pop("length"), **found}
        del found["value"]
        digits = {"p_truncated": 4}
        yield {
            **_named(row),
            **{k: [round(x, digits.get(k, 2)) for x in v.tolist()] for k, v in found.items()},
        }
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


def _source(
    lenvm: str | Path, outputs: StateLogits | None, gamma: float | None, max_tokens: int | None
) -> tuple[LengthValueConfig, StateLogits]:
    """What the checkpoint says about its outputs, and where they come from; refuses what it does
    not know (ValueError) before anything is computed."""
    if outputs is not None:
        config = LengthValueConfig.from_pretrained(find_lenvm(lenvm))
    else:
        model = LengthValueModel.from_pretrained(lenvm)
        config, outputs = model.config, partial(iter_outputs, model)
    nothing = torch.zeros(0, *([] if config.bins is None else [len(config.bins) - 1]))
    lengths_of(nothing, config, gamma=gamma, max_tokens=max_tokens)
    return config, outputs
