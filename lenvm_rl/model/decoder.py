"""What must be known of a causal LM before its rows can be batched continuously?"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lenvm_rl.rollouts.ends import end_token_ids

FOREIGN = (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError)
"""What the code of some architecture raises where it is used as it was not meant to be."""


def context_length(config) -> int:
    """The model's context length in tokens."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not limit:
        raise ValueError(
            f"{type(config).__name__} has no max_position_embeddings, so the context length is "
            "unknown: set it on the config to the longest sequence the model can read."
        )
    return int(limit)


def eos_ids(model, given: int | Iterable[int] | None, tokenizer=None) -> frozenset[int]:
    """The tokens that end a completion: the caller's, or what `lenvm_rl.rollouts.ends` says of the
    tokenizer and the model's configurations."""
    if given is not None:
        return frozenset([given] if isinstance(given, int) else given)
    return end_token_ids(
        tokenizer=tokenizer,
        generation=getattr(model, "generation_config", None),
        config=model.config,
    )


@contextmanager
def attending_by(config, implementation: str) -> Iterator[None]:
    """Let the model attend by `implementation` inside the block."""
    text = config.get_text_config()
    usual, text._attn_implementation = text._attn_implementation, implementation
    try:
        yield
    finally:
        text._attn_implementation = usual


def check_attention(config) -> None:
    """Refuse layers whose state is not one full key/value cache."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None)
    windowed = getattr(text, "use_sliding_window", window is not None) and window
    if kinds != {"full_attention"} or (windowed and window < context_length(config)):
        raise ValueError(
            f"{type(config).__name__} has layers other than full attention "
            f"({', '.join(sorted(kinds))}; sliding_window={window}), which this sampler does not "
            "batch: sample from it with vLLM."
        )


def cache_argument(model) -> str:
    """What the model's forward calls its key/value cache: `cache` from transformers 5.24 on."""
    known = inspect.signature(model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"
