"""Attention of new tokens, and of candidates side by side, to the cached tokens of their slot.

Shapes: S slots of C columns, T tokens in a pass, H key/value heads, G query heads per key/value
head, D head dimension; a tier has r rows of Q queries each.

A pass packs the tokens of many slots into one row `[1, T]`, so that a trunk of any family spends
nothing on padding. Each slot brings a *segment*: tokens that continue what it holds, then sibling
candidates, each of which might come next. All are written behind the slot's content; a token at
position p sees the columns before p, and its own. New tokens are thereby causal, and siblings, who
share one position, see the whole prefix but not each other.

Registered with transformers as `attn_implementation="lenvm_prefix"`, without a function for masks:
transformers then makes none. The pass reaches the layers as the keyword argument `lenvm_pass`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from lenvm_rl.guidance.exact.cache import KeyValueShape, KeyValueStore, to_device

PREFIX_ATTENTION = "lenvm_prefix"
# Products of queries with keys that a tier may compute in vain, as a multiple of the useful ones:
# a kernel call costs a CPU little.
_WASTE = {"cpu": 1.5}
_WASTE_ELSEWHERE = 4.0


class Segment(NamedTuple):
    """What one slot brings to a pass: `new` tokens from column `start` on, then siblings."""

    slot: int
    start: int
    new: int
    siblings: int


class Attends(Protocol):
    """What a layer's attention is handed over to."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        window: int | None,
    ) -> Tensor: ...


class Probe:
    """Stands in for a pass in a first, causal forward that finds out what the layers keep."""

    def __init__(self) -> None:
        self.shapes: dict[int, KeyValueShape] = {}

    def attend(self, layer, query, key, value, *, scaling, window) -> Tensor:
        self.shapes[layer] = KeyValueShape(
            key.shape[1], key.shape[3], value.shape[3], torch.promote_types(key.dtype, value.dtype)
        )
        gqa = query.shape[1] != key.shape[1]
        output = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=gqa
        )
        return output[0].transpose(0, 1)


@dataclass
class _Tier:
    """Neighbouring segments of a pass that one kernel call serves."""

    pages: Tensor | slice
    """[r, n] of their slots; of a single one whose pages follow each other, its cells."""
    tokens: slice
    """Their tokens in the pass."""
    shape: tuple[int, int]
    """r, Q"""
    grid: Tensor | None
    """[r, Q] token of each query (the last one repeated as padding); None: a full grid."""
    place: Tensor | None
    """[tokens] index of each token in the flattened grid; None: a full grid."""
    span: int
    """Columns read."""
    fresh: bool
    """Only new tokens of slots without content, all equally many: plainly causal."""
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)


class Pass:
    """One forward over segments of several slots; writes to and reads from a store.

    Args:
        segments: with ascending slots, none without tokens.
    Attributes:
        position: [T] position of each token in its sequence.
        is_new: [T] bool (numpy), False at siblings.
    """

    def __init__(self, store: KeyValueStore, segments: Sequence[Segment]):
        self._store = store
        slot, start, new, siblings = np.array(segments, dtype=np.int64).T
        counts = new + siblings
        first = np.cumsum(counts) - counts
        row = np.repeat(np.arange(len(counts)), counts)
        offset = np.arange(len(row)) - first[row]
        self.is_new = offset < new[row]
        column = start[row] + offset
        cells = store.cells(slot[row], column)
        table = np.stack([start[row] + np.minimum(offset, new[row]), column, cells])
        self.position, self._column, self._cell = to_device(table, store.device)
        self._tiers = [
            self._tier(slot[a:b], start[a:b], siblings[a:b], counts[a:b], int(first[a]))
            for a, b in _bounds(start + counts, counts, store.device)
        ]

    def _tier(self, slot, start, siblings, counts, first: int) -> _Tier:
        device, store = self._store.device, self._store
        r, q = len(slot), int(counts.max())
        grid = place = None
        if (counts != q).any():
            heads = first + np.cumsum(counts) - counts
            columns = np.arange(q)
            grid = to_device(heads[:, None] + np.minimum(columns, counts[:, None] - 1), device)
            place = to_device(np.flatnonzero(columns < counts[:, None]), device)
        count = store.pages_of(int((start + counts).max()))
        pages = store.table[slot, :count]
        first_page = int(pages[0, 0])
        run = r == 1 and (np.diff(pages[0]) == 1).all()
        return _Tier(
            pages=slice(first_page * store.page, (first_page + count) * store.page)
            if run
            else to_device(pages, device),
            tokens=slice(first, first + int(counts.sum())),
            shape=(r, q),
            grid=grid,
            place=place,
            span=count * store.page,
            fresh=grid is None and not siblings.any() and not start.any(),
        )

    def attend(self, layer, query, key, value, *, scaling, window) -> Tensor:
        """[1, G H, T, D] queries, [1, H, T, D] keys and values -> [T, G H, D]."""
        keys, values = self._store.keys[layer], self._store.values[layer]
        own = key[0].transpose(0, 1).to(keys.dtype), value[0].transpose(0, 1).to(values.dtype)
        keys.index_copy_(0, self._cell, own[0])
        values.index_copy_(0, self._cell, own[1])
        queries = query[0].transpose(0, 1)
        outputs = [
            self._attend_fresh(tier, queries, own, scaling)
            if tier.fresh and (window is None or window >= tier.shape[1])
            else self._attend_tier(tier, queries, self._seen(tier, layer), scaling, window)
            for tier in self._tiers
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _seen(self, tier: _Tier, layer: int) -> tuple[Tensor, Tensor]:
        """[r, H, span, D] keys and values of a tier."""
        if isinstance(tier.pages, slice):
            keys, values = (
                x[layer][None, tier.pages] for x in (self._store.keys, self._store.values)
            )
        else:
            keys, values = self._store.gather(layer, tier.pages)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def _attend_fresh(self, tier: _Tier, queries, own, scaling) -> Tensor:
        """Of tokens that see nothing but each other."""
        chosen, keys, values = (
            x[tier.tokens].unflatten(0, tier.shape).transpose(1, 2) for x in (queries, *own)
        )
        output = F.scaled_dot_product_attention(
            chosen.to(keys.dtype),
            keys,
            values,
            is_causal=True,
            scale=scaling,
            enable_gqa=chosen.shape[1] != keys.shape[1],
        )
        return output.transpose(1, 2).flatten(0, 1)

    def _attend_tier(self, tier: _Tier, queries, seen, scaling, window) -> Tensor:
        """The query heads of a key/value head are laid out as further queries of that head, so
        that keys and values are never repeated."""
        keys, values = seen
        (r, q), heads = tier.shape, keys.shape[1]
        chosen = queries[tier.tokens] if tier.grid is None else queries[tier.grid]
        grouped = chosen.reshape(r, q, heads, -1, chosen.shape[-1]).permute(0, 2, 3, 1, 4)
        groups = grouped.shape[2]
        output = F.scaled_dot_product_attention(
            grouped.flatten(2, 3).to(keys.dtype),
            keys,
            values,
            attn_mask=self._mask(tier, window, groups),
            scale=scaling,
        )
        output = output.unflatten(2, (groups, q)).permute(0, 3, 1, 2, 4)  # [r, Q, H, G, D]
        output = output.reshape(r * q, heads * groups, -1)
        return output if tier.place is None else output[tier.place]

    def _mask(self, tier: _Tier, window: int | None, groups: int) -> Tensor:
        """[r, 1, G Q, span], added to the scores; made once per pass."""
        if (window, groups) not in tier.masks:
            chosen = tier.tokens if tier.grid is None else tier.grid
            position = self.position[chosen].view(*tier.shape, 1)
            own = self._column[chosen].view(*tier.shape, 1)
            columns = torch.arange(tier.span, device=own.device)
            unseen = (columns >= position) & (columns != own)
            if window is not None:  # a position sees `window` tokens, itself included
                unseen |= columns <= position - window
            mask = torch.zeros(unseen.shape, dtype=self._store.dtype, device=own.device)
            mask.masked_fill_(unseen, -torch.inf)
            tier.masks[window, groups] = mask[:, None].repeat(1, 1, groups, 1)
        return tier.masks[window, groups]


def _bounds(ends, counts, device: torch.device) -> list[tuple[int, int]]:
    """Where the segments of each tier begin and end: rows of like size."""
    limit = _WASTE.get(device.type, _WASTE_ELSEWHERE)
    bounds, begin, useful = [], 0, 0
    for i in range(len(ends)):
        useful += int(counts[i] * ends[i])
        tier = slice(begin, i + 1)
        done = (i + 1 - begin) * int(counts[tier].max() * ends[tier].max())
        if done > limit * useful:
            bounds.append((begin, i))
            begin, useful = i, int(counts[i] * ends[i])
    return [*bounds, (begin, len(ends))]


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lenvm_pass: Attends | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, handed over to the pass: [1, T, G H, D], no weights.

    Raises:
        ValueError: no pass reached the layer, or a variant of attention that sdpa lacks.
    """
    name = type(module).__name__
    if lenvm_pass is None:
        raise ValueError(
            f"attention {PREFIX_ATTENTION!r} works inside a scorer only, and {name} was called "
            "without its pass: use attn_implementation='sdpa'. If the scorer called, this trunk "
            "does not hand arguments on to its attention: put the LenVM on another, e.g. Qwen or "
            "Llama."
        )
    if softcap is not None or s_aux is not None or not getattr(module, "is_causal", True):
        raise ValueError(
            f"attention {PREFIX_ATTENTION!r} has no logit soft-capping, no sinks and is causal, "
            f"other than {name}: put the LenVM on another trunk."
        )
    output = lenvm_pass.attend(
        module.layer_idx, query, key, value, scaling=scaling, window=sliding_window
    )
    return output.to(query.dtype).unsqueeze(0), None


AttentionInterface.register(PREFIX_ATTENTION, prefix_attention)
