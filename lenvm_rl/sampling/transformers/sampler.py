"""Sampling completions from any transformers causal LM with continuous batching.

A row that ends leaves the batch at once and a waiting prompt takes its place, so a long tail of
lengths does not idle the batch; equal prompts are prefilled once. Meant for small and medium
models on a CPU or one accelerator; large policies are sampled by vLLM through verl.

    sampler = ContinuousSampler(model, tokenizer=tokenizer)
    completions = sampler.generate([Request(prompt_ids, max_tokens=512, seed=7)])

Every request draws from its own random stream, so its completion depends on (weights, prompt,
settings, seed) and not on the batch, its size or the order of the queue. (Floating-point sums of
other batch shapes differ in the last bits, which moves about one token in a million.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lenvm_rl.model.decoder import check_attention, context_length, eos_ids
from lenvm_rl.model.hub import check_weights
from lenvm_rl.model.tokens import load_tokenizer
from lenvm_rl.sampling.transformers.decode_batch import (
    Completion,
    DecodeBatch,
    LogitsHook,
    Request,
)

__all__ = ["Completion", "ContinuousSampler", "Request"]


class ContinuousSampler:
    """Continuous batching over a causal LM: all requests at once, or submit and step.

    Args:
        model: any transformers causal LM whose layers all have full attention, on its device. It
            is put in evaluation mode.
        eos_token_ids: tokens that end a completion; None: the tokenizer's EOS and those of the
            model's generation configuration (`lenvm_rl.rollouts.ends`).
        tokenizer: of the model; asked for its EOS alone.
        max_batch: rows that decode together.
        seed: stream from which requests without a seed draw theirs; None is nondeterministic.
        hook: changes the logits of every step; completions then carry the log-probabilities of
            the changed distribution.
    Raises:
        ValueError: no EOS is known, or the model's attention cannot be batched this way.
    """

    def __init__(
        self,
        model,
        *,
        eos_token_ids: int | Iterable[int] | None = None,
        tokenizer: Any = None,
        max_batch: int = 128,
        seed: int | None = None,
        hook: LogitsHook | None = None,
    ):
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}.")
        check_attention(model.config)
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.eos_token_ids = eos_ids(model, eos_token_ids, tokenizer)
        self.context_length = context_length(model.config)
        self.vocab_size = model.config.get_text_config().vocab_size
        self.max_batch = max_batch
        seeds = torch.Generator()
        if seed is None:
            seeds.seed()
        else:
            seeds.manual_seed(seed)
        self._queue: deque[tuple[Hashable, Request]] = deque()
        self._batch = DecodeBatch(
            self.model, eos_token_ids=self.eos_token_ids, max_batch=max_batch, seeds=seeds
        )
        self.hook = hook

    @property
    def hook(self) -> LogitsHook | None:
        """Changes the logits of every step; None leaves them."""
        return self._batch.hook

    @hook.setter
    def hook(self, hook: LogitsHook | None) -> None:
        self._batch.hook = hook

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        **settings,
    ) -> ContinuousSampler:
        """Load a causal LM from a directory or hub name; `settings` go to the constructor, by
        default with the tokenizer that lies there.

        Args:
            dtype: of the weights; "auto" keeps the checkpoint's, float32 on a CPU.
            device: the first accelerator, or the CPU, when None.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto" and torch.device(device).type == "cpu":
            dtype = torch.float32
        check_weights(path)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, attn_implementation="sdpa"
            )
        except ValueError:  # a model without sdpa; whether it can be batched is asked below
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        if settings.get("eos_token_ids") is None and settings.get("tokenizer") is None:
            with suppress(ValueError):  # a model without a tokenizer ends as its configuration says
                settings["tokenizer"] = load_tokenizer(path)
        return cls(model.to(device), **settings)

    # --- all at once -----------------------------------------------------------------------

    def generate(
        self,
        requests: Sequence[Request],
        progress: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Completions of `requests`, in their order.

        Args:
            requests: larger `max_tokens` are started first, so that the longest do not come last.
            progress: called as `progress(index, completion)` when a request finishes.
        """
        if self.pending:
            raise ValueError(
                f"generate() while {self.pending} submitted requests are pending: "
                "call step() until they are done, or use another sampler."
            )
        for request in requests:  # all are checked before any work is done
            self.check(request)
        for i in sorted(range(len(requests)), key=lambda i: -requests[i].max_tokens):
            self.submit(requests[i], i)
        done: dict[int, Completion] = {}
        while self.pending:
            for index, completion in self.step():
                done[index] = completion
                if progress is not None:
                    progress(index, completion)
        return [done[i] for i in range(len(requests))]

    # --- incrementally ---------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return len(self._queue) + len(self._batch.live)

    def check(self, request: Request) -> None:
        """Raise ValueError if the model cannot take this prompt."""
        n = len(request.prompt_ids)
        if n >= self.context_length:
            raise ValueError(
                f"prompt of {n} tokens leaves no room in the model's context of "
                f"{self.context_length} tokens: shorten the prompt (a cut prompt would be another "
                "task) or use a model with a longer context."
            )
        low, high = min(request.prompt_ids), max(request.prompt_ids)
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"prompt token id {low if low < 0 else high} is outside the model's vocabulary of "
                f"{self.vocab_size}: was the prompt encoded with another tokenizer?"
            )

    def submit(self, request: Request, request_id: Hashable) -> None:
        """Queue a request; `step()` returns its completion under `request_id`."""
        self.check(request)
        self._queue.append((request_id, request))

    @torch.inference_mode()
    def abort(self, request_id: Hashable) -> bool:
        """Forget a waiting or running request; True if there was one."""
        for i, (waiting, _) in enumerate(self._queue):
            if waiting == request_id:
                del self._queue[i]
                return True
        for slot, running in enumerate(self._batch.live):
            if running.request_id == request_id:
                self._batch.release(slot)
                return True
        return False

    @torch.inference_mode()
    def step(self) -> list[tuple[Hashable, Completion]]:
        """Admit waiting prompts, decode one token per row, return what finished."""
        free = self.max_batch - len(self._batch.live)
        # Admitting costs a pass of its own: let a few rows free up first (they idle meanwhile).
        if self._queue and (free >= min(len(self._queue), max(1, self.max_batch // 16))):
            self._batch.admit([self._queue.popleft() for _ in range(min(free, len(self._queue)))])
        if not self._batch.live:
            return []
        self._batch.decode()
        return self._batch.collect()
