"""How does a LenVM directory come to be? Fresh trunk, published checkpoint, atomic saving."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from lenvm_rl.model.config import LengthValueConfig
from lenvm_rl.model.length_value_model import LengthValueModel
from lenvm_rl.model.tokens import load_tokenizer, tokenizer_sha

# The reference's names of the head's parameters (its trainer wraps the model in TRL's class).
_PUBLISHED_HEAD = {
    "v_head.fc.weight": "fc.weight",
    "v_head.fc.bias": "fc.bias",
    "v_head.summary.weight": "summary.weight",
    "v_head.summary.bias": "summary.bias",
}


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
        ValueError: for sizes that do not fit together.
    """
    heads = num_heads or max(1, hidden_size // 64)
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size {hidden_size} does not divide by {heads} attention heads: choose a "
            "multiple, or give num_heads."
        )
    trunk = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
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
    return LengthValueModel(config)


def import_published(
    path: str | Path, *, gamma: float, target: str = "return", policy_name: str | None = None
) -> LengthValueModel:
    """Read a checkpoint of the paper's reference code: a trunk plus `value_head.safetensors`.

    Those checkpoints do not say which gamma they were trained with; it is given once here and
    stored from then on (paper: 0.997 for Qwen2.5, 0.9998 or 0.999 for Qwen3).

    Args:
        path: directory with `config.json`, trunk weights and the head in
            `value_head.safetensors`, `value_head.bin` or among the trunk's weights.
        gamma: the discount it was trained with.
        target: the target it was trained with.
        policy_name: the policy whose lengths it predicts, for the record.

    Raises:
        ValueError: no head found, or a head of another shape than fc + SiLU + summary.
    """
    path = Path(path)
    head = _published_head(path)
    tokenizer = load_tokenizer(path)
    inner, hidden = head["fc.weight"].shape
    model = LengthValueModel.from_policy(
        path,
        gamma=gamma,
        target=target,
        head_hidden_size=None if inner == hidden else inner,
        policy=describe_policy(policy_name or str(path.name), tokenizer),
    )
    if hidden != model.config.hidden_size:
        raise ValueError(
            f"the head in {path} reads {hidden} features, the trunk there gives "
            f"{model.config.hidden_size}: head and trunk belong to different models."
        )
    model.score.load_state_dict({name: tensor.float() for name, tensor in head.items()})
    return model


def _published_head(path: Path) -> dict[str, torch.Tensor]:
    candidates = [path / "value_head.safetensors", path / "value_head.bin"]
    candidates += sorted(path.glob("model*.safetensors"))
    for file in candidates:
        if not file.is_file():
            continue
        tensors = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
        head = {new: tensors[old] for old, new in _PUBLISHED_HEAD.items() if old in tensors}
        if len(head) == len(_PUBLISHED_HEAD):
            return head
        if head or any(name.startswith("v_head.") for name in tensors):
            raise ValueError(
                f"{file} holds {sorted(n for n in tensors if n.startswith('v_head.'))}, not the "
                f"two-layer head {sorted(_PUBLISHED_HEAD)}: it was not written by the LenVM "
                "reference trainer."
            )
    raise ValueError(
        f"{path} has no value_head.safetensors (or value_head.bin, or v_head.* weights): it is a "
        "plain language model. Start a value model from it with `lenvm init`."
    )


def save_checkpoint(model: LengthValueModel, tokenizer: Any, path: str | Path) -> Path:
    """Write model and tokenizer as one directory that appears complete or not at all.

    Raises:
        ValueError: if `path` exists and holds something else than a LenVM.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()) and not (path / "config.json").is_file():
        raise ValueError(
            f"{path} exists and is not a model directory: it would be replaced. Name another "
            "directory, or remove this one."
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
