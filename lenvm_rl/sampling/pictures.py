"""How does a prompt with pictures reach a server? As messages, in OpenAI's content parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.transformers.sampler import Request

_MARK = "<image>"


@dataclass(frozen=True)
class PicturedRequest(Request):
    """A request whose prompt has pictures: it goes as messages, through the server's template.

    `prompt_ids` are those of the text alone, by which the request is known.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    """With OpenAI content parts where pictures stand."""


def pictured(request: Request, prompt: Prompt) -> PicturedRequest:
    """The request for a prompt with pictures; each stands for one `<image>` in the messages.

    Raises:
        ValueError: another number of `<image>` than of pictures, or a picture that is a file's
            path, which a server cannot read.
    """
    left = list(prompt.images)
    if sum(message["content"].count(_MARK) for message in prompt.messages) != len(left):
        raise ValueError(f"prompt {prompt.prompt_id!r} has not one {_MARK} for each picture.")
    if not all(image.startswith(("data:", "http://", "https://")) for image in left):
        raise ValueError(
            f"prompt {prompt.prompt_id!r} has a picture by path: give data URIs or URLs."
        )
    messages: list[dict[str, Any]] = []
    for message in prompt.messages:
        parts: list[dict[str, Any]] = []
        for number, text in enumerate(message["content"].split(_MARK)):
            if number:
                parts.append({"type": "image_url", "image_url": {"url": left.pop(0)}})
            if text.strip():
                parts.append({"type": "text", "text": text.strip()})
        messages.append({"role": message["role"], "content": parts})
    return PicturedRequest(**vars(request), messages=messages)
