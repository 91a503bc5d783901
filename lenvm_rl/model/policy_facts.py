"""What does a policy's directory say of its tokens: which end a response, how many are there?

A few kilobytes of JSON, of a directory or hub name, read without the weights. A directory that
holds a tokenizer alone says what its tokenizer says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from lenvm_rl.rollouts.ends import end_token_ids, token_count, vocabulary_size


@dataclass(frozen=True, kw_only=True)
class PolicyConfigs:
    """Configurations of a policy; None where its directory has none that can be read."""

    generation: Any
    config: Any


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """What a rollout file needs to know of the policy that filled it."""

    eos_ids: list[int]
    """Tokens that end a response, see `lenvm_rl.rollouts.ends`."""
    vocab_size: int
    """Token ids are below it, see `lenvm_rl.rollouts.ends`."""
    token_count: int
    """Ids from here on stand for no token."""
    chat_template_args: dict[str, Any]
    """What the chat template gets besides the messages."""

    def of_run(self) -> dict[str, Any]:
        """Arguments of a `SamplingRun`."""
        return asdict(self)


def policy_configs(path: str | Path) -> PolicyConfigs:
    """The generation configuration and the model's of a directory or hub name."""
    config = _found(AutoConfig, path, trust_remote_code=False)
    generation = _found(GenerationConfig, path)
    if generation is None and config is not None:  # as transformers and vLLM make it
        generation = GenerationConfig.from_model_config(config)
    return PolicyConfigs(generation=generation, config=config)


def policy_facts(
    path: str | Path,
    tokenizer: Any,
    *,
    end_ids: Sequence[int] | None = None,
    vocab_size: int | None = None,
) -> PolicyFacts:
    """Of a policy's directory or hub name, and its tokenizer.

    Args:
        end_ids, vocab_size: what the caller knows better.
    Raises:
        ValueError: nothing there names an end of a response.
    """
    known = policy_configs(path)
    return PolicyFacts(
        eos_ids=sorted(
            end_ids
            or end_token_ids(tokenizer=tokenizer, generation=known.generation, config=known.config)
        ),
        vocab_size=vocab_size or vocabulary_size(tokenizer, known.config),
        token_count=token_count(tokenizer),
        chat_template_args=dict(getattr(tokenizer, "chat_template_args", {})),
    )


def _found(kind: Any, path: str | Path, **settings: Any) -> Any:
    try:
        return kind.from_pretrained(path, **settings)
    except (OSError, ValueError, KeyError):
        return None
