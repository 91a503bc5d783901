"""What may be taken for granted of a trunk? Found by trying it, not by a list of architectures.

A state depends on a token exactly where its gradient with respect to that token's embedding is
not zero: a masked score has the weight 0.0, and its gradient is 0.0 in any precision. So one pass
over a dozen tokens tells, without a tolerance, what a trunk of any size reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from lenvm_rl.model.decoder import attending_by

TO_ITSELF = "lenvm_to_itself"
"""An attention in which a token attends to itself alone: what is still mixed, other layers mix."""

_LENGTHS = (5, 7)  # tokens of two sequences in one row; a convolution is shorter than either


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
    device = next(trunk.parameters()).device
    ids = torch.arange(1, sum(_LENGTHS) + 1, device=device)[None]
    ids = ids % trunk.config.get_text_config().vocab_size
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
