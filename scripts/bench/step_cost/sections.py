"""Where does the time of a guided step go? Exclusive seconds of the parts, by wrapping them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from lenvm_rl.guidance import guide
from lenvm_rl.guidance.exact.attention import Pass
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.guidance.heads.q_head import CandidateTable, PolicyHeadScorer, QHeadScorer
from lenvm_rl.model import ValueHead
from scripts.bench.step_cost.loop import Loop, Policy, synchronize
from scripts.bench.step_cost.scorers import TwoForwardScorer

_POLICY = "policy: forward"
_PARTS: list[tuple[Any, str, str]] = [
    (Loop, "step", "rest of the step"),
    (Policy, "forward", _POLICY),
    (Policy, "sample", "policy: sampling"),
    (guide.Guide, "apply", "guide: rest"),
    (guide.Guide, "_batch_of", "guide: requests"),
    (guide, "select_candidates", "guide: candidates"),
    (guide, "_worth_scoring", "guide: what needs scoring"),
    (guide.Guide, "_lengths", "guide: slots, lengths"),
    (guide, "guide", "guide: the modes' rules"),
    (guide, "_write", "guide: writing"),
    (ExactScorer, "score", "scorer: checks and rest"),
    (QHeadScorer, "score", "scorer: checks and rest"),
    (PolicyHeadScorer, "score", "scorer: checks and rest"),
    (ExactScorer, "_keep_sampled", "scorer: sampled token kept"),
    (ExactScorer, "_catch_up", "scorer: catching up"),
    (TwoForwardScorer, "_catch_up", "scorer: catching up"),
    (ExactScorer, "_run_trunk", "scorer: trunk, rest"),
    (Pass, "__init__", "scorer: layout"),
    (Pass, "attend", "scorer: attention"),
    (torch.nn.Linear, "forward", "scorer: matrix products"),
    (ValueHead, "forward", "scorer: head"),
    (CandidateTable, "states", "scorer: head"),
    (CandidateTable, "logits", "scorer: head"),
]


class Sections:
    """Seconds by part; a part's seconds exclude those of parts called by it."""

    def __init__(self, device: torch.device):
        self.seconds: Counter[str] = Counter()
        self._device = device
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def watching(self) -> Iterator[Sections]:
        """Measure all parts inside the block."""
        with ExitStack() as stack:
            for owner, name, label in _PARTS:
                stack.enter_context(patch.object(owner, name, self._wrap(owner, name, label)))
            yield self

    def _wrap(self, owner: Any, name: str, label: str) -> Any:
        inner = getattr(owner, name)

        def timed(*args, **kwargs):
            if _POLICY in self._stack:
                return inner(*args, **kwargs)
            self._charge()
            self._stack.append(label)
            try:
                return inner(*args, **kwargs)
            finally:
                self._charge()
                self._stack.pop()

        return timed

    def _charge(self) -> None:
        """Give the time since the last change to the innermost part."""
        synchronize(self._device)
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


def where_time_goes(loop: Loop, steps: int) -> dict[str, float]:
    """Milliseconds per step of each part, largest first; measuring adds some to each."""
    with Sections(loop.policy.device).watching() as sections:
        for _ in range(steps):
            loop.step()
    return {
        part: round(1e3 * seconds / steps, 3) for part, seconds in sections.seconds.most_common()
    }
