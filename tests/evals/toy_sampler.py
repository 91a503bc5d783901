"""A toy sampler whose lengths are known: it ends where it is told to."""

import random

from lenvm_rl.evals.outcomes import Outcome
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.transformers.sampler import Completion

EOS = 1
PROMPTS = [
    Prompt(prompt_id=f"p{i}", messages=[{"role": "user", "content": f"q{i}"}], ground_truth="right")
    for i in range(3)
]


def completion(length):
    return Completion([5] * length + [EOS], "stop", [0.0] * (length + 1))


def obedient(requests, settings):
    """Ends where it is told to; unguided, anywhere from 2 to 20 tokens by its seed."""
    out = []
    for request, guide in zip(requests, settings, strict=True):
        length = random.Random(request.seed).randint(2, 20)
        if guide is not None and guide.mode == "tilt":
            length = max(1, round(length * (1 + guide.beta / 100)))
        elif guide is not None:
            length = guide.target
        out.append(completion(length))
    return out


def outcome(length, *, right=True, ended=True, prompt=0):
    return Outcome(prompt=prompt, length=length, ended=ended, right=right, logprob=-1.0)
