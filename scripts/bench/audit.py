"""A processor that checks its candidate values and its slots inside a running engine.

`AuditedGuidance` is `LengthGuidance` that checks itself and writes what it found to a JSON file:

    LENVM_AUDIT_FILE=audit.json     where to
    LENVM_AUDIT_VALUES=1            also recompute every candidate's value from its whole history,
                                    with another copy of the LenVM (slow: for tests and benches)

    vllm serve POLICY --logits-processors scripts.bench.audit:AuditedGuidance ...
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.guidance import CandidateScorer, History
from lenvm_rl.model import LengthValueModel
from lenvm_rl.vllm.options import GuidanceOptions
from lenvm_rl.vllm.processor import LengthGuidance

_EVERY = 20  # steps between two writes


@dataclass
class AuditFigures:
    """What was found so far."""

    steps: int = 0
    """Calls of `apply`."""
    values: int = 0
    """Candidate values compared with a full recompute."""
    max_difference: float = 0.0
    """Largest difference of a value (V, unitless) from its recompute."""
    max_logit_difference: float = 0.0
    """Largest difference of a raw logit."""
    longest_history: int = 0
    """Tokens of the longest history that was valued."""
    guided_requests: int = 0
    """Guided requests in the batch now."""
    slots_in_use: int = 0
    """Slots of the pool that are taken now."""
    cache_bytes: int = 0
    """Memory reserved for all slots."""


class RecomputingScorer:
    """A scorer that compares every value of another one with a full recompute.

    Args:
        scorer: the one that is checked, whose values are used. One that reads the policy's hidden
            states has none of the prompt's end in the middle of a prompt, and vLLM throws such rows
            away: check it with prompts read whole.
        model: another copy of the LenVM, with its own trunk in any case.
        figures: takes the differences.
    """

    def __init__(self, scorer: CandidateScorer, model: LengthValueModel, figures: AuditFigures):
        self.config = scorer.config
        self.reads_policy = getattr(scorer, "reads_policy", False)
        self._scorer = scorer
        self._model = model.eval()
        self._figures = figures

    @property
    def in_use(self) -> int:
        """Open slots of the scorer."""
        return self._scorer.in_use

    def open(self, history: History) -> int:
        """As the scorer."""
        return self._scorer.open(history)

    def close(self, slot: int) -> None:
        """As the scorer."""
        self._scorer.close(slot)

    def score(
        self,
        slots: Sequence[int],
        histories: Sequence[History],
        candidates: Tensor,
        mask: Tensor,
        **states: Tensor,
    ) -> Tensor:
        """The scorer's values, once they have been compared; `states` as the scorer takes them."""
        z = self._scorer.score(slots, histories, candidates, mask, **states)
        for row, history in enumerate(histories):
            kept = candidates[row][mask[row]]
            if len(kept):
                self._compare(history, kept, z[row][mask[row]])
        return z

    @torch.inference_mode()
    def _compare(self, history: History, candidates: Tensor, z: Tensor) -> None:
        tokens = torch.tensor(history.tail(0), device=candidates.device)
        whole = torch.cat([tokens.expand(len(candidates), -1), candidates[:, None]], dim=1)
        expected = self._model.length_logits(whole)[:, -1]
        figures = self._figures
        difference = (torch.sigmoid(z) - torch.sigmoid(expected)).abs().max().item()
        logit_difference = (z - expected).abs().max().item()
        figures.values += len(candidates)
        figures.max_difference = max(figures.max_difference, difference)
        figures.max_logit_difference = max(figures.max_logit_difference, logit_difference)
        figures.longest_history = max(figures.longest_history, len(history))


class AuditedGuidance(LengthGuidance):
    """`LengthGuidance` that writes `AuditFigures` to LENVM_AUDIT_FILE; see the module.

    Raises:
        ValueError: LENVM_AUDIT_FILE is not set.
    """

    def __init__(self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool = False):
        super().__init__(vllm_config, device_or_states, is_pin_memory)
        file = os.environ.get("LENVM_AUDIT_FILE")
        if not file:
            raise ValueError("AuditedGuidance writes to LENVM_AUDIT_FILE: name a file there.")
        self._file = Path(file)
        self._figures = AuditFigures(cache_bytes=getattr(self._guide.scorer, "cache_bytes", 0))
        if os.environ.get("LENVM_AUDIT_VALUES") == "1":
            checkpoint = GuidanceOptions.read(vllm_config.additional_config).checkpoint
            model = LengthValueModel.from_pretrained(checkpoint).to(self._device)
            self._guide.scorer = RecomputingScorer(self._guide.scorer, model, self._figures)
        self._write()

    def apply(self, logits: Tensor, context: Any = None) -> Tensor:
        """As `LengthGuidance.apply`."""
        logits = super().apply(logits, context)
        self._figures.steps += 1
        if self._figures.steps % _EVERY == 1 or self._figures.guided_requests != self.guided:
            self._write()
        return logits

    def update_state(self, batch_update: Any) -> None:
        """As `LengthGuidance.update_state`."""
        super().update_state(batch_update)
        if batch_update is not None:
            self._write()

    def _write(self) -> None:
        self._figures.guided_requests = self.guided
        self._figures.slots_in_use = self._guide.scorer.in_use
        partial = self._file.with_name(self._file.name + ".tmp")
        partial.write_text(json.dumps(asdict(self._figures)))
        os.replace(partial, self._file)
