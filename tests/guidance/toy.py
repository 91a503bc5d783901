"""A Markov policy whose remaining lengths are known exactly, and a scorer that knows them."""

import math

import torch

from lenvm_rl.guidance import PoolExhausted
from lenvm_rl.model import LengthValueConfig

VOCAB, EOS, GAMMA = 12, 1, 0.98


def make_config(vocab_size: int = VOCAB, **fields) -> LengthValueConfig:
    trunk = {"model_type": "qwen2", "vocab_size": vocab_size, "hidden_size": 8}
    return LengthValueConfig(text_config=trunk, **{"gamma": GAMMA, **fields})


class MarkovPolicy:
    """The next token depends on the last one; later tokens of the vocabulary live longer."""

    def __init__(self, logits: torch.Tensor | None = None):
        if logits is None:
            rng = torch.Generator().manual_seed(0)
            logits = torch.randn(VOCAB, VOCAB, generator=rng)
            logits[:, EOS] -= torch.linspace(0.0, 3.0, VOCAB)
        self.logits = logits  # [last token, next token]
        transition = self.logits.double().softmax(-1)
        # w(x) = E[gamma**l | last token x] = gamma * (P(EOS) + sum over the others of P(y) w(y))
        others = transition.clone()
        others[:, EOS] = 0.0
        system = torch.eye(len(logits), dtype=torch.float64) - GAMMA * others
        self.discount = torch.linalg.solve(system, GAMMA * transition[:, EOS])
        self.lengths = self.discount.log() / math.log(GAMMA)  # after each token; not for EOS


def countdown(most: int = 90) -> MarkovPolicy:
    """A policy that knows where it is: token r + 1 leaves r tokens, give or take.

    From r it goes on to r - 1, r - 4 or r + 3, and ends from r = 1.
    """
    logits = torch.full((most + 2, most + 2), -torch.inf)
    logits[: EOS + 1, EOS + 1] = 0.0
    for left in range(1, most + 1):
        for move, p in ((-1, 0.5), (-4, 0.25), (3, 0.25)):
            after = min(max(left + move, 0), most)
            logits[left + 1, after + 1] = torch.logaddexp(
                logits[left + 1, after + 1], torch.tensor(p).log()
            )
    return MarkovPolicy(logits)


class ToyScorer:
    """A CandidateScorer by table; checks that it is used as the interface says."""

    ends = frozenset({EOS})  # whose value is known, so that nobody may ask for it

    def __init__(self, policy: MarkovPolicy, *, slots: int = 8, wrong_eos: bool = True):
        self.config = make_config(vocab_size=len(policy.logits))
        discount = policy.discount.clone()
        self.z = torch.log((1 - discount) / discount).float()
        if wrong_eos:
            self.z[EOS] = 5.0  # must not matter
        self.free = list(range(slots))
        self.seen: dict[int, list[int]] = {}  # of open slots
        self.scored = 0  # candidates

    def open(self, history):
        if not self.free:
            raise PoolExhausted("all slots are in use")
        slot = self.free.pop()
        self.seen[slot] = history.tail(0)
        return slot

    def close(self, slot):
        del self.seen[slot]
        self.free.append(slot)

    def score(self, slots, histories, candidates, mask):
        assert len(set(slots)) == len(slots) == len(histories) == candidates.shape[0]
        assert candidates.shape == mask.shape and mask.dtype == torch.bool
        known = torch.isin(candidates, torch.tensor(sorted(self.ends), dtype=torch.long))
        assert not (mask & known).any(), "the value of an end is known"
        for slot, history in zip(slots, histories, strict=True):
            tokens = history.tail(0)
            assert tokens[: len(self.seen[slot])] == self.seen[slot], "histories only grow"
            self.seen[slot] = tokens
        self.scored += int(mask.sum())
        return self.z[candidates].masked_fill(~mask, 0.0)
