"""Attention over cached prefixes that returns its normaliser too, so that parts can be merged.

A candidate sees its row's prefix, which lies in pages of the store, and itself. A variable-length
flash attention kernel reads the prefix once for all candidates of a row and knows nothing of the
rest;
`merge_attention` adds what else is seen (LenVM guidance reads K candidates per row and step).

    o = sum_i exp(lse_i) o_i / sum_i exp(lse_i),   lse = log sum_i exp(lse_i)

Shapes: N sequences, Tq queries and Tk keys in all, H heads (as many for keys as for queries: query
heads that share keys are laid out as further queries), D head dimension.

Kernels, in the order in which they are tried: what an engine brings (vLLM does), torch's own
`torch.nn.attention.varlen.varlen_attn` (where it takes a block table: torch 2.13), and the package
flash_attn. All need CUDA and half precision. Whether one works
is not read off version numbers: it must reproduce a small case on the device in question
(`prefix_kernel`), with prefixes in any order, otherwise plain `scaled_dot_product_attention` is
used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lenvm_rl.guidance.exact.cache import KeyValueStore

PAGE = 256
"""Tokens of a page: the size that flash attention accepts."""
_CLOSE = 0.02  # of half-precision results of order 1

logger = logging.getLogger("lenvm_rl.guidance")


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """Which keys each sequence's queries see; every query of a sequence sees all of them."""

    cu_queries: Tensor
    """[N + 1] int32, where each sequence's queries begin, and Tq."""
    pages: Tensor
    """[N, max_keys / PAGE] int32, the pages of its keys in order; those behind the last one that is
    used are any."""
    used: Tensor
    """[N] int32, how many they are; may be 0."""
    max_queries: int
    """Queries of the longest sequence."""
    max_keys: int
    """Bound of `used`, a multiple of PAGE."""


class PrefixKernel(Protocol):
    """Attention of queries [Tq, H, D] to keys and values [Tk, H, D].

    Returns:
        The output [Tq, H, D] and the log-sum-exp of the scaled scores [Tq, H] float32; where a
        sequence has no keys the output is 0 and the log-sum-exp infinite, of either sign.
    """

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, prefixes: Prefixes, scale: float
    ) -> tuple[Tensor, Tensor]: ...


def merge_attention(outputs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Partial softmaxes over disjoint sets of keys -> the softmax over all of them.

    Args:
        outputs: [n, ..., D], each normalised over its own keys.
        lses: [n, ...] log-sum-exp of each part's scores. Infinite of either sign where a part has
            no keys (kernels differ in the sign); its output does not matter then.
    Returns:
        [..., D] and [...], float32 or better; 0 and -inf where no part has a key.
    """
    work = torch.promote_types(lses.dtype, torch.float32)
    lses = lses.to(work)
    lses = lses.masked_fill(lses == torch.inf, -torch.inf)
    top = lses.amax(0)
    weights = (lses - top.masked_fill(top == -torch.inf, 0.0)).exp()
    total = weights.sum(0)
    parts = outputs.to(work).masked_fill((weights == 0).unsqueeze(-1), 0.0)
    merged = (weights.unsqueeze(-1) * parts).sum(0)
    lse = total.log() + top
    return merged / total.masked_fill(total == 0, 1.0).unsqueeze(-1), lse


def torch_kernel() -> PrefixKernel:
    """torch's own; ImportError where torch has none."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    def attend(query, keys, values, prefixes, scale):
        output, lse = varlen_attn(
            query,
            keys.unflatten(0, (-1, PAGE)),
            values.unflatten(0, (-1, PAGE)),
            prefixes.cu_queries,
            None,
            prefixes.max_queries,
            prefixes.max_keys,
            return_aux=AuxRequest(lse=True),
            scale=scale,
            seqused_k=prefixes.used,
            block_table=prefixes.pages,
        )
        return output, lse

    return attend


def flash_attn_kernel() -> PrefixKernel:
    """The package flash_attn; ImportError where it is not installed."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    def attend(query, keys, values, prefixes, scale):
        ends = prefixes.used.cumsum(0, dtype=torch.int32)
        output, lse, _ = flash_attn_varlen_func(
            query,
            keys.unflatten(0, (-1, PAGE)),
            values.unflatten(0, (-1, PAGE)),
            prefixes.cu_queries,
            torch.cat([ends.new_zeros(1), ends]),
            prefixes.max_queries,
            prefixes.max_keys,
            softmax_scale=scale,
            return_attn_probs=True,
            block_table=prefixes.pages,
        )
        return output, lse

    return attend


Kernels = Mapping[str, Callable[[], PrefixKernel]]
"""Makers of kernels by name; one that cannot be made raises ImportError."""
KERNELS: Kernels = {
    "torch": torch_kernel,
    "flash_attn": flash_attn_kernel,
}


def prefix_kernel(store: KeyValueStore, first: Kernels | None = None) -> PrefixKernel | None:
    """The first kernel that reproduces a small case on the store's device, in its dtype and head
    dimension; None where none does, which on CUDA is said aloud.

    Args:
        first: tried before `KERNELS`.
    """
    head_dim, dtype, device = store.keys.shape[-1], store.dtype, store.device
    if device.type != "cuda" or store.values.shape[-1] != head_dim:
        return None
    reasons = []
    for name, make in {**(first or {}), **KERNELS}.items():
        try:
            kernel = checked(make(), head_dim=head_dim, dtype=dtype, device=device)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            reasons.append(f"{name}: {error}")
            continue
        logger.info("prefix attention by %s", name)
        return kernel
    logger.warning(
        "no flash attention reads the LenVM's prefixes in %s, so that every step reads whole slots "
        "under a mask, slower: %s",
        dtype,
        "; ".join(reasons),
    )
    return None


@torch.inference_mode()
def checked(
    kernel: PrefixKernel, *, head_dim: int, dtype: torch.dtype, device: torch.device
) -> PrefixKernel:
    """The kernel, if it gets a small case right, with its log-sum-exp turned to [Tq, H].

    Versions differ in whether that is [Tq, H] or [H, Tq]; the case has 3 heads and 7 queries.

    Raises:
        ValueError: another result than full attention's. Whatever the kernel raises.
    """
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(7, 3, head_dim, generator=rng).to(device, dtype)
    keys, values = torch.randn(2, 4 * PAGE, 3, head_dim, generator=rng).to(device, dtype)
    prefixes = Prefixes(
        cu_queries=torch.tensor([0, 2, 5, 7], dtype=torch.int32, device=device),
        pages=torch.tensor([[3, 0], [2, 1], [0, 0]], dtype=torch.int32, device=device),
        used=torch.tensor([5, PAGE + 9, 0], dtype=torch.int32, device=device),
        max_queries=3,
        max_keys=2 * PAGE,
    )
    scale = 1 / math.sqrt(head_dim)
    output, lse = kernel(query, keys, values, prefixes, scale)
    turned = lse.shape == (3, 7)
    if not turned and lse.shape != (7, 3):
        raise ValueError(f"a log-sum-exp of shape {tuple(lse.shape)} for 7 queries of 3 heads")
    found = lse.T if turned else lse
    for queries, pages, used in ((slice(0, 2), [3], 5), (slice(2, 5), [2, 1], PAGE + 9)):
        k, v = (x.unflatten(0, (-1, PAGE))[pages].flatten(0, 1)[:used] for x in (keys, values))
        k, v = k.float(), v.float()
        scores = torch.einsum("qhd,khd->qhk", query[queries].float(), k) * scale
        expected = torch.einsum("qhk,khd->qhd", scores.softmax(-1), v)
        worst = max(
            (output[queries].float() - expected).abs().max().item(),
            (found[queries] - scores.logsumexp(-1)).abs().max().item(),
        )
        if not worst < _CLOSE:
            raise ValueError(f"it is off by {worst} on a case of {used} keys")
    if not torch.isinf(found[5:]).all():
        raise ValueError("a finite log-sum-exp over no keys")
    if not turned:
        return kernel

    def transposed(query, keys, values, prefixes, scale):
        output, lse = kernel(query, keys, values, prefixes, scale)
        return output, lse.T

    return transposed
