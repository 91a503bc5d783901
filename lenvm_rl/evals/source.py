"""Where do an evaluation's completions come from? This process or a server, and both resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenvm_rl.evals.guided_runs import GuidedPolicy, longest_prompt
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.completion_cache import Generate, kept, lenvm_identity
from lenvm_rl.sampling.served import ServedSampler


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an evaluation needs of a policy."""

    generate: Generate
    model: Any | None
    """The policy as a transformers causal LM; None where a server has it."""
    tokenizer: Any
    notify: Callable[[str], None]
    """Names the next progress bar."""


def open_source(
    policy: str | Path,
    lenvm: str | Path | None,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    max_tokens: int,
    top_k: int,
    server: ServedSampler | None = None,
    max_batch: int = 64,
    chat_template_args: dict[str, Any] | None = None,
    progress: bool = False,
) -> Source:
    """A guided policy whose completions are kept in `folder`.

    Args:
        policy: directory or hub name; with a server, of its tokenizer.
        lenvm: directory of the value model; not read with a server, which has its own.
        server: samples there instead of here.
        max_batch: requests that decode together in this process.
        chat_template_args: what the chat template gets besides the messages; with a server, the
            sampler's tokenizer has them.
    Raises:
        ValueError: neither a value model nor a server.
    """
    if server is not None:
        return Source(
            generate=kept(server.generate, folder, identity=server.identity),
            model=None,
            tokenizer=server.tokenizer,
            notify=server.name_next,
        )
    if lenvm is None:
        raise ValueError(
            "there is nothing to guide by: name the value model's directory (--lenvm), or a "
            "server that has one (--server)."
        )
    guided = GuidedPolicy(
        policy,
        lenvm,
        max_length=longest_prompt(policy, prompts, chat_template_args) + max_tokens,
        max_batch=max_batch,
        top_k=top_k,
        chat_template_args=chat_template_args,
        progress=progress,
    )
    identity = {"policy": str(policy), **lenvm_identity(lenvm)}
    return Source(
        generate=kept(guided.generate, folder, identity=identity),
        model=guided.model,
        tokenizer=guided.tokenizer,
        notify=guided.name_next,
    )
