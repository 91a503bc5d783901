"""Sampling completions from any transformers causal LM with continuous batching.

A row that ends leaves the batch at once and a waiting prompt takes its place, so a long tail of
lengths does not idle the batch; equal prompts are prefilled once. Meant for small and medium
models on a CPU or one accelerator; large policies are sampled by vLLM through verl.

    sampler = ContinuousSampler(model, eos_token_ids=[tokenizer.eos_token_id])
    completions = sampler.generate([Request(prompt_ids, max_tokens=512, seed=7)])

Every request draws from its own random stream, so its completion depends on (weights, prompt,
settings, seed) and not on the batch, its size or the order of the queue. (Floating-point sums of
other batch shapes differ in the last bits, which moves about one token in a million.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lenvm_rl.model.decoder import attending_by, check_attention, context_length, eos_ids
from lenvm_rl.model.requests import (
    LENGTH,
    MAX_SEED,
    STOP,
    Completion,
    LogitsHook,
    Request,
    Running,
)
from lenvm_rl.model.slot_cache import SLOT_ATTENTION, SlotCache, decode_plan, tier_order
from lenvm_rl.model.token_sampling import draw_tokens, sampling_logprobs

_PREFILL_TOKENS = 8192  # padded tokens per prefill pass: bounds memory, keeps the padding small

__all__ = ["Completion", "ContinuousSampler", "Request"]


class _Rows:
    """Per-slot state on the device, as one named tensor `[S, ...]` each (S slots)."""

    def __init__(self, slots: int, device: torch.device):
        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(slots, dtype=dtype, device=device)

        self.last = column(torch.long)  # newest token: fed to the model in the next step
        self.position = column(torch.long)  # its position in the sequence
        self.count = column(torch.long)  # tokens generated
        self.budget = column(torch.long)  # tokens allowed
        self.temperature, self.top_p, self.min_p = (column(torch.float32) for _ in range(3))
        self.top_k = column(torch.long)
        self.tokens = torch.zeros(slots, 0, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(slots, 0, device=device)
        self.uniforms = torch.zeros(slots, 0, device=device, dtype=torch.float32)

    def widen(self, budget: int) -> None:
        """Make room for `budget` tokens per row in the output and random-number buffers."""
        missing = budget - self.tokens.shape[1]
        if missing > 0:
            for name in ("tokens", "logprobs", "uniforms"):
                setattr(self, name, torch.nn.functional.pad(getattr(self, name), (0, missing)))

    def move(self, source: int, target: int) -> None:
        """Copy every column of one slot to another."""
        for column in vars(self).values():
            column[target] = column[source]

    def reorder(self, order: Sequence[int]) -> None:
        """Slot i takes what was in slot `order[i]`."""
        taken = torch.tensor(order, device=self.last.device)
        for column in vars(self).values():
            column[: len(order)] = column[taken]


class ContinuousSampler:
    """Continuous batching over a causal LM: all requests at once, or submit and step.

    Args:
        model: any transformers causal LM whose layers all have full attention, on its device. It
            is put in evaluation mode.
        eos_token_ids: tokens that end a completion; None reads the model's generation config.
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
        max_batch: int = 128,
        seed: int | None = None,
        hook: LogitsHook | None = None,
    ):
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch}.")
        check_attention(model.config)
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.eos_token_ids = eos_ids(model, eos_token_ids)
        self.context_length = context_length(model.config)
        self.vocab_size = model.config.get_text_config().vocab_size
        self.max_batch = max_batch
        self.hook = hook
        self._eos = torch.tensor(sorted(self.eos_token_ids), device=self.device)
        self._seeds = torch.Generator()
        if seed is None:
            self._seeds.seed()
        else:
            self._seeds.manual_seed(seed)
        self._queue: deque[tuple[Hashable, Request]] = deque()
        self._live: list[Running] = []  # slot -> request; slots are contiguous
        self._rows = _Rows(max_batch, self.device)
        self._cache = SlotCache(max_batch, capacity=128, limit=self.context_length)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        **settings,
    ) -> ContinuousSampler:
        """Load a causal LM from a directory or hub name; `settings` go to the constructor.

        Args:
            dtype: of the weights; "auto" keeps the checkpoint's, float32 on a CPU.
            device: the first accelerator, or the CPU, when None.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto" and torch.device(device).type == "cpu":
            dtype = torch.float32
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
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
        return len(self._queue) + len(self._live)

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
        for slot, running in enumerate(self._live):
            if running.request_id == request_id:
                self._release(slot)
                return True
        return False

    @torch.inference_mode()
    def step(self) -> list[tuple[Hashable, Completion]]:
        """Admit waiting prompts, decode one token per row, return what finished."""
        free = self.max_batch - len(self._live)
        # Admitting costs a pass of its own: let a few rows free up first (they idle meanwhile).
        if self._queue and (free >= min(len(self._queue), max(1, self.max_batch // 16))):
            self._admit([self._queue.popleft() for _ in range(min(free, len(self._queue)))])
        if not self._live:
            return []
        self._decode()
        return self._collect()

    # --- one step --------------------------------------------------------------------------

    def _admit(self, entries: list[tuple[Hashable, Request]]) -> None:
        """Fill free slots: prefill each new prompt once, copy it to the other rows that share it.

        A prompt's last token is not prefilled: it is the first token the row decodes.
        """
        source = {tuple(row.request.prompt_ids): slot for slot, row in enumerate(self._live)}
        first_of: dict[tuple[int, ...], tuple[Hashable, Request]] = {}
        copies = []
        for entry in entries:
            key = tuple(entry[1].prompt_ids)
            if key in source or key in first_of:
                copies.append((key, entry))
            else:
                first_of[key] = entry
        fresh = sorted(first_of.items(), key=lambda item: len(item[0]))
        for chunk in _chunks([key for key, _ in fresh]):
            self._prefill(chunk, first_slot=len(self._live))
            for key in chunk:
                source[key] = self._start(*first_of[key])
        for key, entry in copies:
            slot = self._start(*entry)
            self._cache.copy_row(source[key], slot, len(key) - 1)
        self._reorder()

    def _reorder(self) -> None:
        """Bring rows of similar length together, which is what the tiers of attention need."""
        lengths = self._rows.position[: len(self._live)].tolist()
        order = tier_order(lengths, self.device)
        moves = [(old, new, lengths[old]) for new, old in enumerate(order) if old != new]
        if moves:
            self._cache.move_rows(moves)
            self._rows.reorder(order)
            self._live = [self._live[old] for old in order]

    def _prefill(self, prompts: list[tuple[int, ...]], *, first_slot: int) -> None:
        """Keys and values of `prompts` without their last tokens, padded on the right."""
        longest = len(prompts[-1]) - 1
        if longest == 0:
            return
        padded = [list(p[:-1]) + [0] * (longest - len(p) + 1) for p in prompts]
        self._cache.begin_prefill(first_slot, longest)
        self.model(
            input_ids=torch.tensor(padded, device=self.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _start(self, request_id: Hashable, request: Request) -> int:
        """Set a new row's state; returns its slot."""
        slot, rows = len(self._live), self._rows
        self._live.append(Running(request_id, request))
        budget = min(request.max_tokens, self.context_length - len(request.prompt_ids))
        rows.widen(budget)
        rows.last[slot] = request.prompt_ids[-1]
        rows.position[slot] = len(request.prompt_ids) - 1
        rows.count[slot], rows.budget[slot] = 0, budget
        rows.temperature[slot] = request.temperature
        rows.top_p[slot], rows.min_p[slot] = request.top_p, request.min_p
        rows.top_k[slot] = max(0, request.top_k)
        seed = request.seed
        if seed is None:
            seed = int(torch.randint(MAX_SEED, (), generator=self._seeds))
        stream = torch.Generator().manual_seed(seed)
        rows.uniforms[slot, :budget] = torch.rand(budget, generator=stream).to(self.device)
        return slot

    def _decode(self) -> None:
        """One forward pass and one token for each of the n live rows."""
        n, rows = len(self._live), self._rows
        plan = decode_plan(rows.position[:n], self.model.dtype)
        self._cache.begin_decode(plan)
        with attending_by(self.model.config, SLOT_ATTENTION):
            outputs = self.model(
                input_ids=rows.last[:n, None],
                position_ids=rows.position[:n, None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
                slot_plan=plan,
                output_hidden_states=self.hook is not None and self.hook.reads_hidden,
            )
        if not plan.served:
            raise ValueError(
                f"{type(self.model).__name__} does not use transformers' attention interface, so "
                "its rows cannot be batched continuously: sample from it with vLLM."
            )
        requests = [running.request for running in self._live]
        logprobs = sampling_logprobs(
            self._hooked(outputs) if self.hook is not None else outputs.logits[:, -1],
            temperature=rows.temperature[:n],
            top_k=rows.top_k[:n] if any(r.top_k > 0 for r in requests) else None,
            top_p=rows.top_p[:n] if any(r.top_p < 1 for r in requests) else None,
            min_p=rows.min_p[:n] if any(r.min_p > 0 for r in requests) else None,
        )
        count = rows.count[:n]
        tokens = draw_tokens(
            logprobs,
            rows.uniforms[:n].gather(1, count[:, None])[:, 0],
            greedy=rows.temperature[:n] == 0,
        )
        rows.tokens[:n].scatter_(1, count[:, None], tokens[:, None])
        rows.logprobs[:n].scatter_(1, count[:, None], logprobs.gather(1, tokens[:, None]))
        if self.hook is not None:
            for running, token in zip(self._live, tokens.tolist(), strict=True):
                running.output.append(token)
        rows.last[:n] = tokens
        rows.count[:n] += 1
        rows.position[:n] += 1

    def _hooked(self, outputs) -> Tensor:
        """Logits [n, V] as the hook leaves them; a copy, so that the model's own stay whole."""
        logits = outputs.logits[:, -1].to(torch.float32, copy=True)
        states = outputs.hidden_states
        self.hook.apply(logits, self._live, None if states is None else states[-1][:, -1])
        return logits

    def _collect(self) -> list[tuple[Hashable, Completion]]:
        """Take finished rows out of the batch."""
        n, rows = len(self._live), self._rows
        stopped = torch.isin(rows.last[:n], self._eos)
        ended = stopped | (rows.count[:n] >= rows.budget[:n])
        finished = []
        for slot in reversed(ended.nonzero()[:, 0].tolist()):  # last first: slots behind are live
            count = int(rows.count[slot])
            completion = Completion(
                rows.tokens[slot, :count].tolist(),
                STOP if bool(stopped[slot]) else LENGTH,
                rows.logprobs[slot, :count].tolist(),
            )
            finished.append((self._live[slot].request_id, completion))
            self._release(slot)
        return finished[::-1]

    def _release(self, slot: int) -> None:
        """Free a slot by moving the last live row into it: live rows stay contiguous."""
        last = len(self._live) - 1
        if self.hook is not None:
            self.hook.close(self._live[slot].request_id)
        if slot != last:
            self._cache.copy_row(last, slot, int(self._rows.position[last]))
            self._rows.move(last, slot)
            self._live[slot] = self._live[last]
        self._live.pop()


def _chunks(prompts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Split prompts sorted by length into prefill batches of at most `_PREFILL_TOKENS` padded."""
    chunks: list[list[tuple[int, ...]]] = []
    for prompt in prompts:
        if chunks and (len(chunks[-1]) + 1) * len(prompt) <= _PREFILL_TOKENS:
            chunks[-1].append(prompt)
        else:
            chunks.append([prompt])
    return chunks
