"""The vocabulary of the command line: words that mean the same in every command.

A word's help stands where a docstring says nothing; `read` turns what was typed into what functions
take: `demo` into a directory, `gsm8k@hub:100` into prompts.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """Changes values, of which `name` is one, in place; `plain`: the function takes text."""
    adds: tuple[str, ...] = ()
    """Words that it needs beside it."""


def _policy(values: dict[str, Any], name: str, plain: bool) -> None:
    from lenvm_rl.demo.prompts import resolve_policy

    values[name] = resolve_policy(str(values[name]))


def _lenvm(values: dict[str, Any], name: str, plain: bool) -> None:
    from lenvm_rl.model import find_lenvm

    given = values[name]
    if isinstance(given, list):
        values[name] = [find_lenvm(one, option=f"--{name}") for one in given]
    elif not values.get("server"):  # a server has its own
        values[name] = find_lenvm(given, option=f"--{name}")


def _prompts(values: dict[str, Any], name: str, plain: bool) -> None:
    if not plain:
        from lenvm_rl.demo.prompts import resolve_prompts

        seed, limit = values.get("seed", 0), values.get("limit")
        values[name] = resolve_prompts(values[name], seed=seed, limit=limit)


def _grader(values: dict[str, Any], name: str, plain: bool) -> None:
    if not plain:
        from lenvm_rl.cli.graders import graded

        values["prompts"], values[name] = graded(values[name], values["prompts"])


def _chat_template_args(values: dict[str, Any], name: str, plain: bool) -> None:
    values[name] = template_args(values[name])


def _think_tags(values: dict[str, Any], name: str, plain: bool) -> None:
    values[name] = values[name].replace("\\n", "\n")


WORDS = {
    "policy": Word("Policy: directory, hub name, or `demo`.", kind=str, read=_policy),
    "tokenizer": Word(
        "Tokenizer of the policy that wrote them: directory, hub name, or `demo`.",
        read=_policy,
    ),
    "lenvm": Word("Value model: directory, hub id, or `demo`.", read=_lenvm),
    "student": Word(read=_lenvm),
    "probe": Word(kind=str, read=_policy),
    "prompts": Word(
        "Prompts: a file, `demo:COUNT`, `demo-products:COUNT`, or a set: `gsm8k@hub:100`.",
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
        "With vLLM: longest prompt and response in tokens (default: what the run needs).", least=1
    ),
    "max_num_seqs": Word("With vLLM: maximum number of concurrent requests.", least=1),
    "lenvm_memory": Word("Memory for the LenVM's keys and values, e.g. 2GiB (default: a quarter)."),
    "lenvm_dtype": Word("Data type of the LenVM: auto (the policy's), float32, bfloat16, float16."),
    **{
        name: Word(least=1)
        for name in ("max_tokens", "batch_size", "steps", "layers", "max_positions", "vocab_size")
    },
    "hidden_size": Word(least=8),
    "top_k": Word(least=0),
    "flush_seconds": Word(least=0),
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
