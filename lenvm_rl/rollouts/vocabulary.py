"""How many token ids are there? The one rule; engines, converters and trainers ask here.

The rows of a policy's output layer bound what it can sample, and so a rollout file: many policies
are padded beyond their tokenizer (all Qwen2.5), and under RL they do sample ids that stand for no
token. Such rows are kept and counted. `len(tokenizer)` bounds nothing: ids may have holes, and the
largest lies above the count.
"""

from __future__ import annotations

from typing import Any


def token_count(tokenizer: Any) -> int:
    """The largest id that stands for a token, plus 1."""
    return max(tokenizer.get_vocab().values()) + 1


def vocabulary_size(tokenizer: Any, config: Any = None) -> int:
    """Ids of a response are below it: `vocab_size` of the policy's configuration, where that is
    known; else the tokenizer's `token_count`."""
    if config is not None:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        if getattr(text, "vocab_size", None):
            return int(text.vocab_size)
    return token_count(tokenizer)
