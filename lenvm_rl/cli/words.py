"""The vocabulary of the command line: words that mean the same in every command.

A word's help stands where a docstring says nothing; `read` turns what was typed into what functions
takes: `demo` into a directory, `gsm8k@hub:100` into prompts.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Word:
    """What a word of the command line means."""

    help: str = ""
    kind: Any = None
    """Type on the command line, where the function takes another one."""
    default: Any = inspect.Parameter.empty
    least: int | None = None
    """Smallest value."""
    read: Callable[..., None] | None = None
    """Changes the values given, in place; `plain`: the function takes what was typed."""
    adds: tuple[str, ...] = ()
    """Words that it needs beside it."""


def _policy(given: dict[str, Any], *, plain: bool) -> None:
    from lenvm_rl.demo.prompts import resolve_policy

    for word in ("policy", "tokenizer"):
        if given.get(word) is not None:
            given[word] = resolve_policy(given[word])


def _lenvm(given: dict[str, Any], *, plain: bool) -> None:
    from lenvm_rl.model import find_lenvm

    for word in ("lenvm", "student"):
        names = given.get(word)
        if isinstance(names, list):
            given[word] = [find_lenvm(name, option=f"--{word}") for name in names]
        elif names is not None:
            given[word] = find_lenvm(names, option=f"--{word}")


def _prompts(given: dict[str, Any], *, plain: bool) -> None:
    if not plain:
        from lenvm_rl.demo.prompts import resolve_prompts

        given["prompts"] = resolve_prompts(
            given["prompts"], seed=given.get("seed", 0), limit=given.pop("limit", None)
        )


def _grader(given: dict[str, Any], *, plain: bool) -> None:
    if not plain:
        from lenvm_rl.cli.graders import graded

        given["prompts"], given["grader"] = graded(given["grader"], given["prompts"])


def _chat_template_args(given: dict[str, Any], *, plain: bool) -> None:
    given["chat_template_args"] = template_args(given["chat_template_args"])


def _think_tags(given: dict[str, Any], *, plain: bool) -> None:
    given["think_tags"] = given["think_tags"].replace("\\n", "\n")


WORDS = {
    "policy": Word("Policy: directory, hub name, or `demo`.", kind=str, read=_policy),
    "tokenizer": Word(
        "Tokenizer of the policy that wrote them: directory, hub name, or `demo`.",
        read=_policy,
    ),
    "lenvm": Word("Value model: directory, hub id, or `demo`.", read=_lenvm),
    "prompts": Word(
        "Prompts: a file, `demo:COUNT`, or a set: `gsm8k@hub:100`.",
        kind=str,
        read=_prompts,
        adds=("limit", "seed"),
    ),
    "grader": Word(
        "Grader: auto (by data source), none, a name, or package.module:function.",
        kind=str,
        default="auto",
        read=_grader,
    ),
    "n": Word("Completions per prompt.", least=1),
    "limit": Word("Maximum number of prompts.", kind=int, default=None, least=1),
    "max_tokens": Word(least=1),
    "batch_size": Word(least=1),
    "any_policy": Word("Accept rollouts of another policy than the value model's."),
    "chat_template_args": Word(
        "Argument of the chat template: `enable_thinking=false`, or a JSON object; repeatable.",
        kind=list[str],
        default=None,
        read=_chat_template_args,
    ),
    "end_token": Word(
        "Token or id that ends a response, if tokenizer and generation config do not name it; "
        "repeatable."
    ),
    "think_tags": Word(
        "How the policy writes reasoning that is kept beside the content, if its chat template "
        "does not say: '<think>\\n...\\n</think>\\n\\n'.",
        read=_think_tags,
    ),
    "max_model_len": Word(
        "vllm: longest prompt and response in tokens (default: what the run needs).", least=1
    ),
    "max_num_seqs": Word("vllm: maximum number of concurrent requests.", least=1),
    "lenvm_memory": Word("Memory for the LenVM's keys and values, e.g. 2GiB (default: a quarter)."),
    "lenvm_dtype": Word("Data type of the LenVM: auto (the policy's), float32, bfloat16, float16."),
    "out": Word("Directory to write to."),
    "seed": Word("Seed of everything random.", kind=int, default=0),
}


def template_args(given: Sequence[str]) -> dict[str, Any]:
    """Arguments of the chat template from `name=value` and JSON objects.

    A value is JSON where it can be (false, 3, "a"), else text.
    """
    found: dict[str, Any] = {}
    for text in given:
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


def text_of(given: str) -> str:
    """The text itself, or what `@FILE` holds."""
    if not given.startswith("@"):
        return given
    path = Path(given[1:])
    if not path.is_file():
        raise ValueError(f"{given!r} names a file that does not exist: {path}.")
    return path.read_text(encoding="utf-8")
