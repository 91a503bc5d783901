"""Does guidance on an accelerator ever ask for a tensor's content, which waits for the device?

Steps run here on the meta device, whose tensors have shapes and no content: whoever asks for it
(`item`, `nonzero`, a boolean index, `if tensor`) fails. The one thing that the scorer reads, the
candidates of the step before, comes by `LateRead`, which does not wait for the step at hand.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from lenvm_rl.model import heads
from lenvm_rl.scoring import GuidanceSettings, History, exact
from lenvm_rl.scoring.exact import ExactScorer
from lenvm_rl.scoring.guide import Guide, GuidedRow
from tests.scoring.test_exact import VOCAB, make_lenvm

EOS = 1
SETTINGS = {
    "tilt": GuidanceSettings(mode="tilt", beta=-4.0, top_k=5),
    "scale": GuidanceSettings(mode="scale", scale=0.7, min_entropy=0.3),
    "equal": GuidanceSettings(mode="equal", target=6, top_p=0.9, min_p=0.02),
    "equal_soft": GuidanceSettings(mode="equal_soft", target=6),
    "at_most": GuidanceSettings(mode="at_most", target=6),
    "at_most_used_up": GuidanceSettings(mode="at_most", target=1),
    "at_least": GuidanceSettings(mode="at_least", target=6),
}


class KnownIds:
    """In `LateRead`'s place: candidates 0, 1, 2, ... of every row."""

    def __init__(self, tensor):
        assert tensor.device.type == "meta"
        self._shape = tensor.shape

    def read(self):
        return np.broadcast_to(np.arange(self._shape[1]), self._shape)


@pytest.fixture
def scorer(monkeypatch):
    monkeypatch.setattr(exact, "LateRead", KnownIds)
    # It asks torch whether autocast is on, which knows no meta device.
    monkeypatch.setattr(heads, "_without_autocast", lambda x: nullcontext())
    return ExactScorer(
        make_lenvm().to("meta"), slots=8, max_length=100, max_candidates=8, fixed_shapes=True
    )


def decode(scorer, names, steps=3):
    """Guided steps; tokens 2 and 9 by turns, of which only the first was a candidate."""
    guidance = Guide(scorer, eos_token_ids=[EOS], max_candidates=8)
    asked = [
        GuidedRow(2 * i, name, SETTINGS[name], History([3, 4], [5]), 2, temperature=0.8 + 0.2 * i)
        for i, name in enumerate(names)
    ]
    for step in range(steps):
        logits = torch.empty(2 * len(names), VOCAB, device="meta")
        guidance.apply(logits, asked)
        for row in asked:
            row.history.output.append((2, 9)[step % 2])


@pytest.mark.parametrize("names", [[name] for name in SETTINGS] + [list(SETTINGS)], ids="+".join)
def test_no_step_asks(scorer, names):
    decode(scorer, names)
    stats = scorer.stats
    assert stats.steps == 3 and stats.committed == stats.rows // 3
    assert stats.prefilled == 4 * stats.rows // 3  # the prompts, and the token that was none


@pytest.mark.parametrize(
    "ask",
    [
        lambda z: z.max().item(),
        lambda z: z[z > 0],
        lambda z: bool((z > 0).any()),
        lambda z: z.nonzero(),
        lambda z: z.cpu(),
    ],
    ids=["item", "index", "if", "nonzero", "cpu"],
)
def test_one_that_asks_is_found_out(scorer, monkeypatch, ask):
    inner = scorer._score_fixed
    monkeypatch.setattr(scorer._fixed, "_score", lambda *args: (z := inner(*args), ask(z))[0])
    with pytest.raises((RuntimeError, NotImplementedError)):
        decode(scorer, ["tilt"])
