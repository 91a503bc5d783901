"""Pairs of policy and LenVM, and the scorers that are compared, each made for a pair and a load.

The pairs are the shipped policy's and a larger one of random weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lenvm_rl.demo import policy_path
from lenvm_rl.guidance import CandidateScorer
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.guidance.heads.q_head import PolicyHeadScorer, QHeadScorer
from lenvm_rl.model import LengthValueConfig, LengthValueModel
from scripts.bench.hardware import Shape

GAMMA = 0.99


class Pair(NamedTuple):
    """A policy and its LenVM, in evaluation mode on one device."""

    policy: PreTrainedModel
    lenvm: LengthValueModel

    @property
    def vocab_size(self) -> int:
        """Tokens of both."""
        return self.policy.config.get_text_config().vocab_size


def shipped() -> Pair:
    """The shipped policy with a LenVM on its trunk; the LenVM's head is random."""
    policy = AutoModelForCausalLM.from_pretrained(policy_path(), dtype=torch.float32)
    return Pair(policy, LengthValueModel.from_policy(policy_path(), gamma=GAMMA))


def random_pair() -> Pair:
    """A policy of 135 M parameters (30 layers of 576) and a LenVM whose trunk has 25 M without
    its embedding (6 layers of 512); random weights."""
    tied = {"context": 4096, "tie_word_embeddings": True}
    policy = Shape(576, 30, 9, 3, 1536, 49_152).config("llama", **tied)
    trunk = Shape(512, 6, 8, 2, 2304, 49_152).config("llama", **tied)
    return Pair(
        AutoModelForCausalLM.from_config(policy),
        LengthValueModel(LengthValueConfig(text_config=trunk, gamma=GAMMA)),
    )


SHAPES: dict[str, Callable[[], Pair]] = {"demo": shipped, "135m": random_pair}


def make_pair(name: str, *, device: str, dtype: torch.dtype, seed: int) -> Pair:
    """The pair `name` of SHAPES."""
    torch.manual_seed(seed)
    return Pair(*(model.eval().to(device=device, dtype=dtype) for model in SHAPES[name]()))


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
