"""Creation of a LenVM directory: a fresh trunk, atomic saving."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from lenvm_rl.core import DISTRIBUTION, LengthBins
from lenvm_rl.model.config import LengthValueConfig
from lenvm_rl.model.heads import make_head
from lenvm_rl.model.hub import model_type
from lenvm_rl.model.length_value_model import LengthValueModel, check_decoder
from lenvm_rl.model.tokens import tokenizer_sha
from lenvm_rl.rollouts.ends import token_count


def describe_policy(name: str, tokenizer: Any, revision: str | None = None) -> dict[str, Any]:
    """The `policy` entry of a LenVM's configuration."""
    return {"name": name, "revision": revision, "tokenizer_sha": tokenizer_sha(tokenizer)}


def from_scratch(
    tokenizer: Any,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int | None = None,
    intermediate_size: int | None = None,
    max_positions: int = 4096,
    architecture: str = "qwen2",
    gamma: float | None = None,
    policy_name: str = "",
    **config_fields: Any,
) -> LengthValueModel:
    """A LenVM with a fresh, random trunk over the vocabulary of `tokenizer`.

    Args:
        hidden_size: width; must divide by the number of heads (one head per 64 by default).
        num_layers: number of blocks.
        max_positions: longest prompt plus response in tokens.
        architecture: any transformers `model_type` of a decoder, e.g. "qwen2", "llama".

    Raises:
        ValueError: for sizes that do not fit together, or an architecture that is no decoder.
    """
    heads = num_heads or max(1, hidden_size // 64)
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size {hidden_size} does not divide by {heads} attention heads: choose a "
            "multiple, or give num_heads."
        )
    trunk = AutoConfig.for_model(
        architecture,
        vocab_size=token_count(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or 4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    config = LengthValueConfig(
        text_config=trunk,
        gamma=gamma,
        policy=describe_policy(policy_name, tokenizer),
        **config_fields,
    )
    model = LengthValueModel(config)
    check_decoder(model.model, architecture)
    return model


def to_distribution(model: LengthValueModel, bins: LengthBins) -> LengthValueModel:
    """The same trunk and hidden layer under a fresh output for each bin; seed it with torch."""
    config = copy.deepcopy(model.config)
    config.target, config.bins, config.num_labels = DISTRIBUTION, list(bins.edges), len(bins)
    with torch.device("meta"):
        wide = LengthValueModel(config)
    wide.model = model.model
    head = make_head(config).to(next(model.score.parameters()).dtype)
    kept = {k: x for k, x in model.score.state_dict().items() if not k.startswith("summary.")}
    head.load_state_dict(kept, strict=False)
    wide.score = head
    return wide


def save_checkpoint(model: LengthValueModel, tokenizer: Any, path: str | Path) -> Path:
    """Write model and tokenizer as one directory that appears complete or not at all.

    Raises:
        ValueError: if `path` exists and holds something else than a LenVM.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()) and model_type(path) != "lenvm":
        raise ValueError(
            f"{path} exists and holds something else than a LenVM: it would be replaced. Name "
            "another directory, or remove this one."
        )
    partial = path.with_name(path.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if path.exists():
        old = path.with_name(path.name + ".old.tmp")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old)
    else:
        os.replace(partial, path)
    return path
