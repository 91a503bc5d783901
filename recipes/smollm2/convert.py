"""A GGUF file of a chat model as a directory that transformers and vLLM load.

    python -m recipes.smollm2.convert FILE.gguf DIR        (needs the package gguf)

Trap: a GGUF file names one end of text for its tokenizer, which need not be the token that ends a
turn of the chat template (SmolLM2's says <|im_start|>, its turns end with <|im_end|>). Whoever asks
the tokenizer stops at the wrong token, or never. `settle_ends` gives both sources the template's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts.ends import turn_end_id


def settle_ends(tokenizer: Any, *configurations: Any) -> int:
    """Make the token that ends a turn of the chat template the one EOS of the tokenizer, which pads
    too, and of the configurations; returns its id.

    Args:
        tokenizer: its `eos_token` and `pad_token` are set.
        configurations: of the model and of its generation; their `eos_token_id` and
            `pad_token_id` are set.
    Raises:
        ValueError: the chat template ends a turn with no special token, or there is none.
    """
    end = turn_end_id(tokenizer)
    if end is None:
        raise ValueError(
            "the chat template ends a turn with no special token, so nothing says where a response "
            "ends: take a chat model."
        )
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
    for configuration in configurations:
        configuration.eos_token_id = configuration.pad_token_id = end
    return end


def convert(source: Path, out: Path) -> None:
    """Write the model (float32) and the tokenizer of a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    settle_ends(tokenizer, model.config, model.generation_config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:3]))
