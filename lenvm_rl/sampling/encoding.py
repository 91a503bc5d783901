"""Prompts as tasks of a sampling run: token ids up to where the response begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.rollouts.text import TextProblem, prompt_ids
from lenvm_rl.sampling.run import Task

PICTURE_MARK = "<image>"
"""Stands in a message for one of the prompt's pictures."""
_PICTURED = (
    "prompt with pictures",
    "a rollout file's prompts with pictures are not sampled anew yet: give the prompts themselves "
    "(--prompts) to a server.",
)


def encode_prompt(tokenizer: Any, prompt: Prompt, *, pictures: bool = False) -> list[int]:
    """Token ids of a prompt, up to where the response begins; see `rollouts.text.prompt_ids`.

    Args:
        pictures: the engine sees the prompt's pictures; the ids are then those of the text alone.
    Raises:
        TextProblem: a prompt that tokenizer or chat template does not take; one with pictures,
            which would be left out in silence, or that cannot be sent.
    """
    name = f"prompt {prompt.prompt_id!r}" + (f" ({prompt.where})" if prompt.where else "")
    if prompt.images and not pictures:
        raise TextProblem(
            "prompt with pictures",
            f"{name} has {len(prompt.images)} pictures, and only text is "
            "sampled here: without them the policy would answer another question. Write the set "
            "with `lenvm prompts` and sample it with verl, which reads pictures.",
        )
    if prompt.images:
        _check_pictures(name, prompt)
    try:
        return prompt_ids(tokenizer, prompt.messages)
    except TextProblem as error:
        raise TextProblem(error.kind, f"{name}: {error}") from error


def _check_pictures(name: str, prompt: Prompt) -> None:
    kind = "pictures that cannot be sent"
    marks = sum(message["content"].count(PICTURE_MARK) for message in prompt.messages)
    if marks != len(prompt.images):
        raise TextProblem(kind, f"{name} has not one {PICTURE_MARK} for each picture.")
    if not all(image.startswith(("data:", "http://", "https://")) for image in prompt.images):
        raise TextProblem(kind, f"{name} has a picture by path: give data URIs or URLs.")


def messages_with_pictures(task: Task) -> list[dict[str, Any]]:
    """A task's messages as a server takes them: pictures in OpenAI's content parts."""
    if not task.images:
        return list(task.messages or ())
    left = list(task.images)
    messages: list[dict[str, Any]] = []
    for message in task.messages or ():
        parts: list[dict[str, Any]] = []
        for number, text in enumerate(message["content"].split(PICTURE_MARK)):
            if number:
                parts.append({"type": "image_url", "image_url": {"url": left.pop(0)}})
            if text.strip():
                parts.append({"type": "text", "text": text.strip()})
        messages.append({"role": message["role"], "content": parts})
    return messages


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
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    n: int,
    max_tokens: int,
    guidance: GuidanceSettings | Sequence[GuidanceSettings | None] | None = None,
    pictures: bool = False,
) -> list[Task]:
    """`n` completions of every prompt, of at most `max_tokens` tokens each; a prompt that
    `encode_prompt` does not take is a refused task.

    Args:
        guidance: of all prompts, or one for each.
        pictures: the engine sees pictures: a server.
    """
    if not isinstance(guidance, Sequence):
        guidance = [guidance] * len(prompts)
    tasks = []
    for prompt, guide in zip(prompts, guidance, strict=True):
        ids, refused = [], None
        try:
            ids = encode_prompt(tokenizer, prompt, pictures=pictures)
        except TextProblem as error:
            refused = error.kind, str(error)
        tasks.append(
            Task(
                prompt_id=prompt.prompt_id,
                prompt_ids=ids,
                n=n,
                max_tokens=max_tokens,
                guidance=guide,
                messages=prompt.messages,
                images=tuple(prompt.images),
                data_source=prompt.data_source,
                ground_truth=prompt.ground_truth,
                refused=refused,
            )
        )
    return tasks


def tasks_of_rollouts(
    path: str | Path,
    *,
    n: int,
    max_tokens: int,
    limit: int | None = None,
    guidance: GuidanceSettings | None = None,
) -> list[Task]:
    """`n` completions of every prompt of a rollout file, of at most `max_tokens` tokens each; at
    most `limit` prompts. Its first completion stands for a prompt."""
    tasks: dict[str, Task] = {}
    for row in RolloutReader(path).iter_rows():
        if limit is not None and len(tasks) >= limit:
            break
        if row.prompt_id not in tasks:
            tasks[row.prompt_id] = Task(
                prompt_id=row.prompt_id,
                prompt_ids=row.prompt_ids,
                n=n,
                max_tokens=max_tokens,
                guidance=guidance,
                messages=row.prompt_messages,
                data_source=row.data_source,
                ground_truth=row.ground_truth,
                refused=_PICTURED if row.pictures else None,
            )
    return list(tasks.values())
