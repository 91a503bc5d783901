"""Decoders of any architecture: what must be known of one, found by trying it where it can be.

A state depends on a token exactly where its gradient with respect to that token's embedding is not
zero: a masked score has the weight 0.0, and its gradient is 0.0 in any precision. So one pass over
a dozen tokens tells, without a tolerance or a list of architectures, what a trunk of any size
reads: whether it is causal, and whether packed rows stay apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

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


def cache_bytes_per_token(config, dtype: torch.dtype) -> int | None:
    """Bytes of keys and values of one token in all layers; None: unknown.

    2 x layers x key-value heads x size of a head x bytes of `dtype`.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    size = getattr(text, "head_dim", None) or (heads and text.hidden_size // heads)
    if not size:
        return None
    stored = getattr(text, "num_key_value_heads", None) or heads
    return 2 * text.num_hidden_layers * stored * size * dtype.itemsize


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


TO_ITSELF = "lenvm_to_itself"
"""An attention in which a token attends to itself alone: what is still mixed, other layers mix."""

_LENGTHS = (5, 7)  # tokens of two sequences in one row; a convolution is shorter than either


def probe_ids(trunk: nn.Module) -> Tensor:
    """The dozen tokens that trunks are tried on: ids [1, N] on its device, N = sum(`_LENGTHS`)."""
    device = next(trunk.parameters()).device
    ids = torch.arange(1, sum(_LENGTHS) + 1, device=device)[None]
    return ids % trunk.config.get_text_config().vocab_size


def tokens_read(
    trunk: nn.Module, states: slice, *, packed: bool = False, attention: str = "eager"
) -> Tensor:
    """Which of a few tokens do the hidden states at some positions depend on?

    Args:
        trunk: a transformers model without a head, on any device, in any dtype.
        states: positions of the states, out of N = sum(`_LENGTHS`).
        packed: the row is two sequences of `_LENGTHS` that lie end to end and are told apart by
            position_ids alone, as training packs them; else it is one sequence.
        attention: a name of transformers' attention functions that runs on the trunk's device.
    Returns:
        [N] bool.
    """
    ids = probe_ids(trunk)
    device = ids.device
    given: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if packed:
        starts = [torch.arange(length, device=device) for length in _LENGTHS]
        given["position_ids"] = torch.cat(starts)[None]
    embedded: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0] * 1  # trunks scale embeddings in place, which a leaf forbids

    training, hook = trunk.training, trunk.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad(), attending_by(trunk.config, attention):
            hidden = trunk.eval()(**given).last_hidden_state
            # The plain sum of a normalised state may be constant: its entries are weighed.
            weights = torch.linspace(0.5, 1.5, hidden.shape[-1], device=device, dtype=hidden.dtype)
            (gradient,) = torch.autograd.grad((hidden[:, states] * weights).sum(), embedded[0])
    finally:
        hook.remove()
        trunk.train(training)
    return (gradient.reshape(ids.shape[1], -1) != 0).any(-1)  # XLNet embeds [T, B]


def packs(trunk: nn.Module, attention: str | None = None) -> bool:
    """Do sequences that are packed into one row keep out of each other's states?

    Attention is told by position_ids where a sequence begins. Layers that carry a state or a
    convolution from token to token (Mamba, gated delta nets, LFM2's convolutions) are not, and
    read the end of the sequence before.

    Args:
        trunk: as in `tokens_read`.
        attention: the one that is to run packed. None: one that does it right, such as flash
            attention, which would not run on a CPU: only the other layers are in question.
    """
    first, _ = _LENGTHS

    def apart(by: str) -> bool:
        return not bool(
            tokens_read(trunk, slice(first, None), packed=True, attention=by)[:first].any()
        )

    if attention is not None:
        return apart(attention)
    # gpt-oss builds its eager mask without position_ids.
    return apart("eager") or (trunk._supports_attention_backend and apart(TO_ITSELF))


def is_causal(trunk: nn.Module) -> bool:
    """Does a state depend on its own token and earlier ones alone?

    What an encoder says of a token has seen the tokens behind it: as a value of the length to come
    it has counted them. Padding on the right is such tokens too.

    Args:
        trunk: as in `tokens_read`.
    """
    first, _ = _LENGTHS
    return not bool(tokens_read(trunk, slice(0, first))[first:].any())


def _to_itself(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    repeated = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return repeated.transpose(1, 2).contiguous(), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Nothing is masked: nothing is attended to."""


AttentionInterface.register(TO_ITSELF, _to_itself)
AttentionMaskInterface.register(TO_ITSELF, _no_mask)
