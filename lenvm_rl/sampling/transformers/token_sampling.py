"""Drawing of tokens: temperature, top-k, top-p and min-p on a batch of logits.

Shapes: n rows, V vocabulary. All settings are per-row tensors `[n]`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sampling_logprobs(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
) -> Tensor:
    """Log-probabilities `[n, V]` of the distribution a token is drawn from.

        p ~ softmax(logits / temperature), restricted in the order top-k, top-p, min-p, renormalised

    Args:
        logits: `[n, V]`, any float dtype; the arithmetic is float32.
        temperature: `[n]`, >= 0. A row at 0 keeps the model's own distribution (temperature 1):
            its token is the argmax, and the log-probability stays informative.
        top_k: `[n]` int, keep the k most probable tokens; 0 keeps all.
        top_p: `[n]` in (0, 1], keep the smallest set whose mass reaches top_p; 1 keeps all.
        min_p: `[n]` in [0, 1], drop tokens below min_p times the most probable; 0 keeps all.
    Returns:
        float32 log-probabilities, -inf for tokens that cannot be drawn.
    """
    scale = torch.where(temperature > 0, temperature, torch.ones_like(temperature))
    logprobs = torch.log_softmax(logits.float() / scale[:, None], dim=-1)
    if top_k is None and top_p is None and min_p is None:
        return logprobs
    keep = torch.ones_like(logprobs, dtype=torch.bool)
    if top_k is not None or top_p is not None:
        ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
        keep_ordered = torch.ones_like(keep)
        if top_k is not None:
            rank = torch.arange(logprobs.shape[-1], device=logprobs.device)
            keep_ordered &= (rank[None] < top_k[:, None]) | (top_k[:, None] == 0)
        if top_p is not None:
            probs = ordered.exp() * keep_ordered
            probs = probs / probs.sum(-1, keepdim=True)
            mass_before = probs.cumsum(-1) - probs
            keep_ordered &= (mass_before < top_p[:, None]) | (top_p[:, None] >= 1)
        keep = torch.zeros_like(keep).scatter(-1, order, keep_ordered)
    if min_p is not None:
        highest = logprobs.max(dim=-1, keepdim=True).values
        keep &= logprobs >= highest + min_p[:, None].log()
    return torch.log_softmax(logprobs.masked_fill(~keep, -torch.inf), dim=-1)


def draw_tokens(logprobs: Tensor, uniforms: Tensor, *, greedy: Tensor | None = None) -> Tensor:
    """Tokens `[n]` by inversion of the cumulative distribution, one uniform number per row.

    A row's token depends on its own distribution and its own number alone, so a completion does
    not change with the rows that happen to share its batch.

    Args:
        logprobs: `[n, V]` from `sampling_logprobs`.
        uniforms: `[n]` in [0, 1).
        greedy: `[n]` bool, rows that take the most probable token instead.
    """
    # float64 where the device has it: a float32 running sum over a large vocabulary loses mass.
    wide = torch.float32 if logprobs.device.type == "mps" else torch.float64
    cumulative = logprobs.to(wide).exp_().cumsum(-1)
    threshold = uniforms.to(wide)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    tokens = tokens.clamp_(max=logprobs.shape[-1] - 1)
    return tokens if greedy is None else torch.where(greedy, logprobs.argmax(-1), tokens)
