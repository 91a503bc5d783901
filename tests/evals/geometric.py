"""A policy whose values are known: after each token it ends with a probability set by the prompt.

Every state of prompt k has E[gamma**l] = p_k gamma / (1 - (1 - p_k) gamma), so the mean u,
the true value and the best possible prediction are exact numbers.
"""

from types import SimpleNamespace

import torch
from torch import nn

from lenvm_rl.core import value_to_logit
from lenvm_rl.rollouts import Rollout, RolloutWriter

GAMMA = 0.98
EOS, WORD = 1, 2
SHA = "geometric"


def true_u(p, gamma=GAMMA):
    return 1.0 - p * gamma / (1.0 - (1.0 - p) * gamma)


def end_probability(kind):
    """Prompts of kind 0, 1, 2, ... end ever more slowly: mean lengths 4, 6, 9, ..."""
    return 1.0 / (4.0 * 1.5**kind)


def prompt_of(kind, number=0):
    """The kind is the last token; prompt length says nothing about it."""
    return [WORD] * (1 + (7 * kind + 3 * number) % 5) + [10 + kind]


def rollouts(kinds, n, *, seed=0, prompts_per_kind=1):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for kind in kinds:
        for number in range(prompts_per_kind):
            draws = torch.empty(n).geometric_(end_probability(kind), generator=generator)
            rows += [
                Rollout(
                    prompt_id=f"kind{kind}-{number}",
                    sample_id=i,
                    prompt_ids=prompt_of(kind, number),
                    response_ids=[WORD] * (int(length) - 1) + [EOS],
                    finish_reason="stop",
                    sampling={"temperature": 1.0, "max_tokens": 4096},
                )
                for i, length in enumerate(draws.tolist())
            ]
    return rows


def write(path, rows):
    with RolloutWriter(path, tokenizer_sha=SHA, vocab_size=32, eos_ids=[EOS]) as writer:
        writer.append(rows)
    return path


class Oracle(nn.Module):
    """The true value at every state, in a LenVM's clothes; `bias` shifts its u."""

    def __init__(self, *, bias=0.0, sha=SHA, context=10_000):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))  # says where the model lives
        self.bias = bias
        self.widths = []
        self.config = SimpleNamespace(
            processor=None,
            require_gamma=lambda: GAMMA,
            target="return",
            length_scale=None,
            segment=None,
            length_bins=None,
            policy={"name": "geometric", "tokenizer_sha": sha},
            text_config=SimpleNamespace(max_position_embeddings=context, vocab_size=1000),
            max_position_embeddings=context,
            vocab_size=1000,
        )

    def length_logits(self, input_ids):
        self.widths.append(tuple(input_ids.shape))
        # The kind is named once; states before it are not asked for.
        kind = (input_ids - 10).clamp(min=0).cummax(dim=1).values
        u = true_u(end_probability(kind.double())) + self.bias
        return value_to_logit(-u).float()
