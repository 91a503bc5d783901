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
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from lenvm_rl.model.decoder import FOREIGN, probe_ids

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
        cut = _loaded(path, cut_config(whole.config, layers), **kwargs)
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


def _loaded(path: str | Path, config: PretrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """The trunk of a shorter configuration; ValueError where a weight of it is not at `path`."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the blocks left out are no news
    try:
        cut, info = AutoModel.from_pretrained(
            path, config=config, output_loading_info=True, **kwargs
        )
    finally:
        logging.set_verbosity(verbosity)
    if lost := sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"])):
        raise ValueError(f"their weights {lost[0]} are not in it")
    return cut
