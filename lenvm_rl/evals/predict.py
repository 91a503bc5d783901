"""What does a LenVM say about these prompts, or along these responses? Plain rows of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.core import predicted_length, value_of_logit
from lenvm_rl.evals.prediction import model_space
from lenvm_rl.evals.sampling import encode_prompt
from lenvm_rl.evals.values import iter_logits
from lenvm_rl.model import LengthValueModel, check_tokenizer, load_tokenizer
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.rollouts.prompts import Prompt


def predict_prompts(lenvm: str | Path, prompts: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
    """Value and length (tokens, EOS included) of the response to every prompt, in order.

    Raises:
        ValueError: not a LenVM, a LenVM without gamma, a prompt longer than its context.
    """
    model = LengthValueModel.from_pretrained(lenvm)
    tokenizer = load_tokenizer(lenvm)
    check_tokenizer(model.config, tokenizer)
    pad = 0 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    # One token that is never fed stands for the response: the state s_0 is what is asked about.
    rows = (
        Rollout(
            prompt_id=prompt.prompt_id,
            sample_id=0,
            prompt_ids=encode_prompt(tokenizer, prompt),
            response_ids=[pad],
            finish_reason="length",
        )
        for prompt in prompts
    )
    by_name = {
        row.prompt_id: {
            "prompt_id": row.prompt_id,
            "prompt_tokens": len(row.prompt_ids),
            "value": value_of_logit(z[:1], **model_space(model)).item(),
            "length": predicted_length(z[:1], **model_space(model)).item(),
        }
        for row, z in iter_logits(model, rows)
    }
    return (by_name[prompt.prompt_id] for prompt in prompts)


def predict_rollouts(lenvm: str | Path, rollouts: str | Path) -> Iterator[dict[str, Any]]:
    """Remaining lengths (tokens) at s_0 .. s_{L-1} of every completion of a rollout file.

    Raises:
        ValueError: not a LenVM, a file of another tokenizer, a row longer than the context.
    """
    model = LengthValueModel.from_pretrained(lenvm)
    sha = (model.config.policy or {}).get("tokenizer_sha")
    for row, z in iter_logits(model, RolloutReader(rollouts, tokenizer_sha=sha).iter_rows()):
        lengths = predicted_length(z, **model_space(model))
        yield {
            "prompt_id": row.prompt_id,
            "sample_id": row.sample_id,
            "finish_reason": row.finish_reason,
            "tokens": row.length,
            "remaining_lengths": [round(value, 2) for value in lengths.tolist()],
        }
