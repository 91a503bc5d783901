"""Stands in for vLLM's `LLM`: the token after the prompt's last one, then EOS."""

import os
from types import SimpleNamespace


class FakeLLM:
    """Answers `per_step` requests in a step; after `steps` steps it is interrupted."""

    def __init__(self, steps=10**9, *, per_step=4, context=64):
        self.steps, self.per_step = steps, per_step
        self.asked, self.waiting = [], []
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=context))
        self.llm_engine = self

    def add_request(self, request_id, prompt, params):
        self.asked.append(params)
        self.waiting.append((request_id, prompt["prompt_token_ids"], params))

    def step(self):
        if not self.steps:
            raise KeyboardInterrupt
        self.steps -= 1
        batch, self.waiting = self.waiting[: self.per_step], self.waiting[self.per_step :]
        return [self.answer(*request) for request in reversed(batch)]

    def answer(self, request_id, prompt_ids, params):
        ids = [prompt_ids[-1] + 1, 1]
        logprobs = None
        if params.logprobs is not None:
            logprobs = [{token: SimpleNamespace(logprob=-0.5)} for token in ids]
        completion = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=logprobs)
        return SimpleNamespace(request_id=request_id, finished=True, outputs=[completion])


def start(seed):
    """A fake engine on a node."""
    return FakeLLM()


def dies_once(mark):
    """Like `start`; the first engine ends its process in its first step, and leaves `mark`."""

    class Mortal(FakeLLM):
        def step(self):
            if not os.path.exists(mark):
                open(mark, "w").close()
                os._exit(1)
            return super().step()

    return lambda seed: Mortal()
