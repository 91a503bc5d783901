"""Options that say how a policy's prompts are rendered and its responses end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

ChatTemplateArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--chat-template-args",
        help="Of the chat template: `enable_thinking=false`, or a JSON object. May be repeated.",
    ),
]
EndTokens = Annotated[
    list[str] | None,
    typer.Option(
        "--end-token",
        help="Token or id that ends a response, if tokenizer and generation config do not say it.",
    ),
]
ThinkTags = Annotated[
    str | None,
    typer.Option(
        "--think-tags",
        help="How the policy writes reasoning that is kept beside the content, if its chat "
        r"template does not say it: '<think>\n...\n</think>\n\n'.",
    ),
]


def template_args(given: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of the chat template from `name=value` and JSON objects.

    A value is JSON where it can be (false, 3, "a"), else text.
    """
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if text.lstrip().startswith("{") or not equals:
            try:
                pairs = json.loads(text)
            except ValueError:
                pairs = None
            if not isinstance(pairs, dict):
                raise ValueError(
                    f"--chat-template-args {text!r}: write name=value, or a JSON object such as "
                    "'{\"enable_thinking\": false}'."
                )
            found |= pairs
            continue
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found


def tags(given: str | None) -> str | None:
    """`--think-tags` with its line breaks."""
    return None if given is None else given.replace("\\n", "\n")
