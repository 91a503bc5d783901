"""A toy engine whose lengths are known: it ends where it is told to."""

import random

from lenvm_rl.evals.arms import Outcome, Source
from lenvm_rl.model import tokenizer_sha
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.run import EngineFacts
from tests.tiny import make_tokenizer

EOS, WORD = 1, 5
PROMPTS = [
    Prompt(prompt_id=f"p{i}", messages=[{"role": "user", "content": f"q{i}"}], ground_truth="right")
    for i in range(3)
]


def obedient(request):
    """Length: the target; unguided, anywhere from 2 to 20 tokens by its seed."""
    guide = request.guidance
    if guide is not None and guide.mode != "tilt":
        return guide.target
    length = random.Random(request.sampling["seed"]).randint(2, 20)
    return length if guide is None else max(1, round(length * (1 + guide.beta / 100)))


class ToyEngine:
    """An `Engine` of answers.

    Args:
        answer: request -> length without EOS; negative: so many tokens without an end; None: the
            completion cannot be made.
    """

    def __init__(self, answer=obedient):
        self.answer, self.requests = answer, []
        self.facts = EngineFacts(
            policy="toy",
            tokenizer_sha=tokenizer_sha(make_tokenizer()),
            vocab_size=32,
            eos_ids=[EOS],
        )

    def __call__(self, requests, resumed):
        for request in requests:
            self.requests.append(request)
            length = self.answer(request)
            if length is None:
                yield request.failure("status 503", "the server is busy")
            elif length < 0:
                yield request.rollout([WORD] * -length, "length")
            else:
                yield request.rollout([WORD] * length + [EOS], "stop")


def source(engine, settings):
    """What evaluations sample from."""
    sampling = settings.sampling
    return Source(tokenizer=make_tokenizer(), engine=lambda fields: engine, sampling=sampling)


def outcome(length, *, correct=True, ended=True, prompt=0):
    ids, logprobs = [WORD] * length, [-1.0] * (length + ended)
    return Outcome(prompt=prompt, token_ids=ids, ended=ended, correct=correct, logprobs=logprobs)
