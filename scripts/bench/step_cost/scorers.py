"""What is compared: scorers by name, each made for one policy, its LenVM and a load."""

from __future__ import annotations

import copy
from collections.abc import Callable

from lenvm_rl.guidance import CandidateScorer
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.guidance.heads.q_head import PolicyHeadScorer, QHeadScorer
from lenvm_rl.model import LengthValueConfig, LengthValueModel
from scripts.bench.step_cost.shapes import Pair


class TwoForwardScorer(ExactScorer):
    """As the method's reference scores: one forward over the sampled tokens, then another over
    the candidates, of which nothing is kept. Slots, attention and layout are those of the exact
    scorer, so that the comparison is about the second forward alone."""

    _inline_tokens = 0

    def _catch_up(self, rows: list) -> None:
        self._prefill([row for row in rows if row.missing])

    def _remember(self, *args) -> None:
        """Forget the candidates."""


Maker = Callable[[Pair, int, int, int], CandidateScorer]


def exact(pair: Pair, slots: int, max_length: int, max_candidates: int) -> CandidateScorer:
    """One forward per step."""
    return ExactScorer(
        pair.lenvm, slots=slots, max_length=max_length, max_candidates=max_candidates
    )


def two_forward(pair: Pair, slots: int, max_length: int, max_candidates: int) -> CandidateScorer:
    """Two forwards per step."""
    return TwoForwardScorer(
        pair.lenvm, slots=slots, max_length=max_length, max_candidates=max_candidates
    )


def q_head(pair: Pair, slots: int, max_length: int, max_candidates: int) -> CandidateScorer:
    """A candidate head of random weights on the LenVM's trunk: one token per request and step."""
    config = copy.deepcopy(pair.lenvm.config)
    config.head = "candidate"
    model = LengthValueModel(config).to(device=pair.lenvm.device, dtype=pair.lenvm.dtype)
    model.model = pair.lenvm.model
    return QHeadScorer(model, slots=slots, max_length=max_length)


def policy_head(pair: Pair, slots: int, max_length: int, max_candidates: int) -> CandidateScorer:
    """A candidate head of random weights on the policy's own hidden states: no second model."""
    trunk = copy.deepcopy(pair.policy.config.get_text_config())
    trunk.num_hidden_layers = 1  # made for the head alone; the policy's trunk takes its place
    if getattr(trunk, "layer_types", None):
        trunk.layer_types = trunk.layer_types[:1]
    config = LengthValueConfig(
        text_config=trunk, gamma=pair.lenvm.config.gamma, head="candidate", frozen_trunk=True
    )
    model = LengthValueModel(config).eval().to(device=pair.policy.device, dtype=pair.policy.dtype)
    model.model = pair.policy.base_model
    return PolicyHeadScorer(model)


SCORERS: dict[str, Maker] = {
    "exact": exact,
    "two_forward": two_forward,
    "q_head": q_head,
    "policy_head": policy_head,
}
"""Any other scorer can be added here; the ratios of the report need the first two."""
