"""Checkpoints of the paper's code: how they are read, and what is known of the published ones.

Such a checkpoint is a language model plus a value head, and says neither which gamma it was trained
with nor whose lengths it predicts. The published ones (huggingface.co/namezz) say the policy in
their names, `lvm-...-a-POLICY-b-TRUNK`; gamma is in the paper and in the code's configurations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from lenvm_rl.model.create import describe_policy
from lenvm_rl.model.hub import find_model
from lenvm_rl.model.length_value_model import LengthValueModel
from lenvm_rl.model.tokens import load_tokenizer

# The reference's names of the head's parameters (its trainer wraps the model in TRL's class).
_HEAD = {
    "v_head.fc.weight": "fc.weight",
    "v_head.fc.bias": "fc.bias",
    "v_head.summary.weight": "summary.weight",
    "v_head.summary.bias": "summary.bias",
}


class Published(NamedTuple):
    """What the name of a published checkpoint stands for."""

    policy: str
    """Hub name of the policy whose lengths it predicts."""
    gamma: float | None
    """Discount that it was trained with; None where the sources contradict each other."""


_NAME = re.compile(r"lvm-(?:[a-z0-9.-]+-)?a-(?P<policy>[a-z0-9.-]+?)-b-(?P<trunk>[a-z0-9.-]+)")
_POLICIES = {
    "qwen2.5-3b-instruct": Published("Qwen/Qwen2.5-3B-Instruct", 0.997),
    "qwen2.5-7b-instruct": Published("Qwen/Qwen2.5-7B-Instruct", 0.997),
    "qwen2.5-vl-7b-instruct": Published("Qwen/Qwen2.5-VL-7B-Instruct", 0.997),
    # Paper, appendix A, and the serving examples: 0.9998; the training configuration: 0.999.
    "qwen3-30b-a3b-instruct": Published("Qwen/Qwen3-30B-A3B-Instruct-2507", None),
}


def published(name: str | Path) -> Published | None:
    """What is known of a checkpoint by its name (of a hub id or a directory); None: nothing."""
    match = _NAME.match(str(name).partition("@")[0].rstrip("/").rpartition("/")[2].lower())
    return None if match is None else _POLICIES.get(match["policy"])


def import_published(
    name: str | Path,
    *,
    gamma: float | None = None,
    target: str = "return",
    policy_name: str | None = None,
) -> LengthValueModel:
    """Read a checkpoint of the paper's reference code: a trunk plus `value_head.safetensors`.

    Args:
        name: directory or hub id. It holds `config.json`, trunk weights and the head in
            `value_head.safetensors`, `value_head.bin` or among the trunk's weights, where its
            parts may lie in several files.
        gamma: the discount it was trained with; None looks a published name up. Stored from then on
            (paper: 0.997 for Qwen2.5, 0.9998 or 0.999 for Qwen3).
        target: the target it was trained with. The relative loss of the `lvm-rel-` checkpoints
            weighs errors; what they predict is the same return.
        policy_name: the policy whose lengths it predicts; None looks a published name up.

    Raises:
        ValueError: gamma is not known, no head found, or a head of another shape than fc + SiLU +
            summary.
    """
    known = published(name)
    if gamma is None:
        gamma = _gamma_of(name, known)
    path = find_model(name)
    head = _read_head(path, name, known)
    tokenizer = load_tokenizer(path)
    inner, hidden = head["fc.weight"].shape
    policy = policy_name or (known.policy if known else str(name))
    model = LengthValueModel.from_policy(
        path,
        gamma=gamma,
        target=target,
        head_hidden_size=None if inner == hidden else inner,
        policy=describe_policy(policy, tokenizer),
    )
    if hidden != model.config.hidden_size:
        raise ValueError(
            f"the head in {name} reads {hidden} features, the trunk there gives "
            f"{model.config.hidden_size}: head and trunk belong to different models."
        )
    model.score.load_state_dict({key: tensor.float() for key, tensor in head.items()})
    return model


def _gamma_of(name: str | Path, known: Published | None) -> float:
    if known is None:
        raise ValueError(
            f"nothing is known of {name} by its name, and a checkpoint of the paper's code does "
            "not say its gamma: give the one it was trained with (paper: 0.997 for Qwen2.5, 0.9998 "
            "for Qwen3), --gamma."
        )
    if known.gamma is None:
        raise ValueError(
            f"the gamma of {name} is not certain: the paper and its serving examples say 0.9998, "
            "the configuration that trains it 0.999, and lengths read with the wrong one are off "
            "by a factor of 5. Give the one that you trust, --gamma, and compare predictions with "
            "lengths (`lenvm eval prediction`)."
        )
    return known.gamma


def _read_head(path: Path, name: str | Path, known: Published | None) -> dict[str, Tensor]:
    """The head's parameters, wherever in the directory they lie."""
    found: dict[str, Tensor] = {}
    for key, tensor in _head_tensors(path):
        found.setdefault(key, tensor)
        if found.keys() >= _HEAD.keys():
            return {new: found[old] for old, new in _HEAD.items()}
    if found:
        raise ValueError(
            f"{name} holds {sorted(found)}, not the two-layer head {sorted(_HEAD)}: it was not "
            "written by the LenVM reference trainer, or a part of its weights is missing."
        )
    where = "value_head.safetensors (or value_head.bin, or v_head.* weights)"
    if known is not None:
        raise ValueError(
            f"{name} should have {where} and has none in {path}: the download is not complete. "
            "Fetch all of its files again."
        )
    raise ValueError(
        f"{name} has no {where}: it is a plain language model. Start a value model from it with "
        "`lenvm init`."
    )


def _head_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all `v_head.*`, the head's own file first; nothing else is read."""
    shards = [*sorted(path.glob("model*.safetensors")), *sorted(path.glob("pytorch_model*.bin"))]
    for file in (path / "value_head.safetensors", path / "value_head.bin", *shards):
        if not file.is_file():
            continue
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (no mapping)
                    if key.startswith("v_head."):
                        yield key, tensors.get_tensor(key)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            yield from ((key, loaded[key]) for key in loaded if key.startswith("v_head."))
