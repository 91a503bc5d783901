"""How does a prompt become token ids, up to where the response begins?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.prompts import Prompt
from lenvm_rl.rollouts.sampling_run import Task


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, up to where the response begins.

    Raises:
        ValueError: a conversation for a tokenizer without a chat template, or a prompt with
            pictures, which would be left out in silence.
    """
    if prompt.images:
        raise ValueError(
            f"prompt {prompt.prompt_id!r} has a picture, and only text is sampled here: write the "
            "set with `lenvm prompts` and sample it with verl, which reads pictures."
        )
    if getattr(tokenizer, "chat_template", None):
        return tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    if [message["role"] for message in prompt.messages] != ["user"]:
        raise ValueError(
            f"prompt {prompt.prompt_id!r} is a conversation, but the policy's tokenizer has no "
            "chat template: give it one, or write the prompt as one plain text."
        )
    return tokenizer(prompt.messages[0]["content"])["input_ids"]


def prompt_row(tokenizer: Any, prompt: Prompt) -> Rollout:
    """A prompt as a row, for what takes rows: one token that is never fed is its response."""
    return Rollout(
        prompt_id=prompt.prompt_id,
        sample_id=0,
        prompt_ids=encode_prompt(tokenizer, prompt),
        response_ids=[0],
        finish_reason="length",
        prompt_messages=prompt.messages,
        data_source=prompt.data_source or "unknown",
        ground_truth=prompt.ground_truth,
    )


def tasks_of_prompts(
    tokenizer: Any, prompts: Sequence[Prompt], *, n: int, max_tokens: int
) -> list[Task]:
    """`n` completions of every prompt, of at most `max_tokens` tokens each.

    Raises:
        ValueError: a prompt with images, or what `encode_prompt` refuses.
    """
    for prompt in prompts:
        if prompt.images:
            raise ValueError(
                f"prompt {prompt.prompt_id!r} has {len(prompt.images)} images, and prompts are "
                "sampled as text: without them the policy would answer another question."
            )
    return [
        Task(
            prompt_id=prompt.prompt_id,
            prompt_ids=encode_prompt(tokenizer, prompt),
            n=n,
            max_tokens=max_tokens,
            messages=prompt.messages,
            data_source=prompt.data_source,
            ground_truth=prompt.ground_truth,
        )
        for prompt in prompts
    ]
