"""A trunk of a policy's first blocks: which parts of its configuration and weights are kept?

Lengths are known early: the trunk of a LenVM may be the policy's first N blocks, with its
embedding before and its final norm behind them, at N / (all blocks) of the cost. Families say in
many ways what block i is (`layer_types`, shared keys, alternating experts), so the cut is tried: on
a dozen tokens, the N-th block has to give what it gives inside the whole policy.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from lenvm_rl.model.decoder import FOREIGN, probe_ids
from lenvm_rl.model.pictures import sees_pictures

_PER_BLOCK = ("layer", "type", "pattern", "intermediate_size")
"""In the names of lists with an entry per block: other lists may be as long by chance."""


def first_blocks(
    whole: PreTrainedModel, layers: int, path: str | Path, **kwargs: Any
) -> PreTrainedModel:
    """The first `layers` blocks of a trunk, loaded anew, with its own embedding and final norm.

    Args:
        whole: the trunk at `path`.
        layers: blocks to keep, from 1 to all.
        path: directory or hub name that `whole` was loaded from.
        kwargs: of `from_pretrained`, as for `whole`.
    Raises:
        ValueError: more blocks than there are, or blocks that give something else without those
            behind them.
    """
    total = block_count(whole.config)
    if not 1 <= layers <= total:
        raise ValueError(
            f"the policy {path} has {total} blocks, and {layers} were asked for: name 1 to {total} "
            "(--layers), or leave it out for the whole policy."
        )
    if layers == total:
        return whole
    kind = whole.config.model_type
    refusal = f"the first {layers} blocks of the {kind!r} model {path} are no model of their own"
    try:
        cut = load_trunk(path, cut_config(whole.config, layers), **kwargs)
        same = torch.equal(block_output(whole, layers), block_output(cut, layers))
    except (*FOREIGN, ArithmeticError) as error:
        raise ValueError(
            f"{refusal} ({type(error).__name__}: {error}): leave out --layers, or take the trunk "
            "of another policy."
        ) from error
    if not same:
        raise ValueError(
            f"{refusal}: they compute something else without the blocks behind them. Leave out "
            "--layers, or take the trunk of another policy."
        )
    return cut


def block_count(config: PretrainedConfig) -> int:
    """Blocks of the text decoder."""
    return int(config.get_text_config().num_hidden_layers)


def cut_config(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """`config` for its first `layers` blocks; lists of one entry per block are shortened too."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, value in vars(text).items():
        listed = isinstance(value, list) and len(value) == text.num_hidden_layers
        if listed and any(word in name for word in _PER_BLOCK):
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return type(config).from_dict(config.to_dict())  # as a reader of the file will see it


def block_output(trunk: PreTrainedModel, layers: int) -> Tensor:
    """What the `layers`-th block gives for a dozen tokens, before any norm: [1, T, H].

    Raises:
        ValueError: blocks that are not in one list.
    """
    decoder = trunk.get_decoder()
    total = block_count(trunk.config)
    lists = (m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == total)
    blocks = next(lists, None)
    if blocks is None:
        raise ValueError(f"no list of {total} blocks is in it")
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    training, hook = trunk.training, blocks[layers - 1].register_forward_hook(keep)
    try:
        with torch.no_grad():
            trunk.eval()(input_ids=probe_ids(trunk), use_cache=False)
    finally:
        hook.remove()
        trunk.train(training)
    return seen[-1]


def load_trunk(
    path: str | Path, config: PretrainedConfig | None = None, **kwargs: Any
) -> PreTrainedModel:
    """The model at `path` without its output embedding.

    A vision-language model is loaded with it and then parted: transformers finds the weights of
    such checkpoints under the names of the whole model alone, and would leave a trunk random.

    Args:
        config: of fewer blocks; None is the one at `path`.
    Raises:
        ValueError: a weight that is not at `path`.
    """
    config = config or AutoConfig.from_pretrained(path, **_of_files(kwargs))
    sees = sees_pictures(config)
    kind = AutoModelForImageTextToText if sees else AutoModel
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # blocks and embeddings left out are no news
    try:
        found, info = kind.from_pretrained(path, config=config, output_loading_info=True, **kwargs)
    finally:
        logging.set_verbosity(verbosity)
    if lost := sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"])):
        raise ValueError(f"its weights {lost[0]} are not in {path}: a part of it would be random.")
    return found.model if sees else found


def _of_files(given: dict[str, Any]) -> dict[str, Any]:
    return {key: given[key] for key in ("revision", "token", "cache_dir") if key in given}
