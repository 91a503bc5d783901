"""How does a prompt become token ids, up to where the response begins?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.text import TextProblem, prompt_ids
from lenvm_rl.sampling.run import Task


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, up to where the response begins; see `rollouts.text.prompt_ids`.

    Raises:
        TextProblem: a prompt that tokenizer or chat template does not take, or one with pictures,
            which would be left out in silence.
    """
    name = f"prompt {prompt.prompt_id!r}" + (f" ({prompt.where})" if prompt.where else "")
    if prompt.images:
        raise TextProblem(
            "prompt with pictures",
            f"{name} has {len(prompt.images)} pictures, and only text is "
            "sampled here: without them the policy would answer another question. Write the set "
            "with `lenvm prompts` and sample it with verl, which reads pictures.",
        )
    try:
        return prompt_ids(tokenizer, prompt.messages)
    except TextProblem as error:
        raise TextProblem(error.kind, f"{name}: {error}") from error


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
    """`n` completions of every prompt, of at most `max_tokens` tokens each; a prompt that
    `encode_prompt` does not take is a refused task."""
    tasks = []
    for prompt in prompts:
        ids, refused = [], None
        try:
            ids = encode_prompt(tokenizer, prompt)
        except TextProblem as error:
            refused = error.kind, str(error)
        tasks.append(
            Task(
                prompt_id=prompt.prompt_id,
                prompt_ids=ids,
                n=n,
                max_tokens=max_tokens,
                messages=prompt.messages,
                data_source=prompt.data_source,
                ground_truth=prompt.ground_truth,
                refused=refused,
            )
        )
    return tasks
