"""What must guidance know about a running request in one step?"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.core import MODES, RowNumbers
from lenvm_rl.core.tilt import working_dtype
from lenvm_rl.guidance.exact.key_values import to_device
from lenvm_rl.guidance.interface import History
from lenvm_rl.guidance.settings import GuidanceSettings

_COLUMNS = ("temperature", "top_k", "top_p", "min_p", "min_entropy", "mode", *RowNumbers._fields)


@dataclass(frozen=True, slots=True)
class GuidedRow:
    """One request in one step."""

    index: int
    """Row of the logits."""
    key: Hashable
    """Names the request from its first step to `Guide.close`."""
    settings: GuidanceSettings
    """What it asks for."""
    history: History
    """Its tokens, the newest included."""
    prompt_length: int
    """Tokens of its prompt: the rest of the history is response."""
    temperature: float = 1.0
    """What the sampler will divide its logits by; 0 is greedy."""
    ends: frozenset[int] | None = None
    """Tokens that end its response; None are the guide's own. Empty: it goes on to its limit, and
    what is EOS elsewhere is a token like any other."""

    own_ends: bool = False
    """Whether some of `ends` are this request's alone. The LenVM, which knows how far the policy's
    EOS is, knows nothing of them: equal and equal_soft take none before n, and one at n."""

    @property
    def generated(self) -> int:
        """Response tokens so far."""
        return len(self.history) - self.prompt_length

    @property
    def used_up(self) -> bool:
        """Whether the response has as many tokens as were asked for; no without a target."""
        settings = self.settings
        if settings.target is None:
            return False
        return settings.target - self.generated - settings.count_eos <= 0

    @property
    def forces_eos(self) -> bool:
        """Whether an end is forced once n is used up."""
        settings = self.settings
        held = self.own_ends and settings.mode in ("equal", "equal_soft")
        return settings.forces_eos or (held and settings.force_eos is None)

    @property
    def steered(self) -> bool:
        """Whether this step is touched at all: at_least lets go once n is reached."""
        done = self.settings.mode == "at_least" and self.used_up
        return not (done or self.settings.changes_nothing)


def numbers_of(rows: Sequence[GuidedRow], device: torch.device) -> dict[str, Tensor]:
    """Every number of the rows as [R] columns, in one transfer."""
    lines = []
    for row in rows:
        s = row.settings
        by_name = {
            "temperature": row.temperature,
            "top_k": max(s.top_k, 0),
            "top_p": s.top_p,
            "min_p": s.min_p,
            "min_entropy": s.min_entropy,
            "mode": MODES.index(s.mode),
            "generated": row.generated,
            "target": s.target or 0,
            "count_eos": s.count_eos,
            "force_eos": row.forces_eos,
            "beta": s.beta or 0.0,
            "scale": 1.0 if s.scale is None else s.scale,
            "scale_length": s.scale_of == "length",
            "value_space": s.space == "value",
            "extreme": s.extreme,
            "short_weight": s.short_weight,
            "max_beta": s.max_beta,
        }
        lines.append([float(by_name[name]) for name in _COLUMNS])
    columns = to_device(np.array(lines).T, device).to(working_dtype(device))
    return dict(zip(_COLUMNS, columns.unbind(), strict=True))


def ends_of(rows: Sequence[GuidedRow], usual: Collection[int], size: int) -> np.ndarray:
    """[R, E] the tokens that end each row's response; a row with fewer repeats its first one, and
    one without any has -1.

    Args:
        usual: ends of the rows that name none.
        size: of the vocabulary; an id outside of it is never sampled.
    """
    ends = [
        sorted(x for x in (usual if row.ends is None else row.ends) if 0 <= x < size)
        for row in rows
    ]
    width = max(1, *map(len, ends))
    padded = [(e or [-1]) + (e or [-1])[:1] * (width - max(len(e), 1)) for e in ends]
    return np.array(padded, dtype=np.int64)
