"""Batch of decoding requests: rows of unlike length that enter, decode together and leave.

Rows lie in contiguous slots of one key/value cache. A prompt is prefilled once and copied to the
rows that share it; the last row moves into the place of one that leaves.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lenvm_rl.model.decoder import (
    FOREIGN,
    attending_by,
    cache_argument,
    check_attention,
    context_length,
)
from lenvm_rl.sampling.run import check_drawing
from lenvm_rl.sampling.transformers.slot_cache import (
    SLOT_ATTENTION,
    SlotCache,
    decode_plan,
    tier_order,
)
from lenvm_rl.sampling.transformers.token_sampling import draw_tokens, sampling_logprobs

STOP, LENGTH = "stop", "length"
MAX_SEED = 2**63 - 1
_PREFILL_TOKENS = 8192  # padded tokens per prefill pass: bounds memory, keeps the padding small


@dataclass(frozen=True)
class Request:
    """One completion to sample; the settings are checked on construction."""

    prompt_ids: Sequence[int]
    """Token ids of the prompt, at least one."""
    max_tokens: int
    """Most tokens of the completion, EOS included; the context length may cut earlier."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this mass, in (0, 1]."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 (or -1, as vLLM writes it) keeps all."""
    min_p: float = 0.0
    """Drop tokens below this share of the most probable one's probability, in [0, 1]."""
    seed: int | None = None
    """Random stream of this completion; None draws one from the sampler's own stream."""

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0:
            raise ValueError("prompt_ids is empty: start from at least one token, such as BOS.")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        check_drawing(self.temperature, self.top_p, self.top_k, self.min_p)
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}.")


@dataclass(frozen=True)
class Completion:
    """What was sampled for one request."""

    token_ids: list[int]
    """Generated tokens; the last one is EOS when `finish_reason` is "stop"."""
    finish_reason: str
    """`"stop"` (EOS was drawn) or `"length"` (cut by max_tokens or the context length)."""
    logprobs: list[float]
    """Log-probability of each token under the distribution it was drawn from (greedy requests:
    under the model's own distribution)."""


@dataclass
class Running:
    """A request while its completion is being sampled."""

    request_id: Hashable
    """As it was submitted."""
    request: Request
    output: list[int] = field(default_factory=list)
    """Tokens generated so far; kept only for samplers with a hook."""


class LogitsHook(Protocol):
    """Changes the logits of every step before tokens are drawn from them."""

    reads_hidden: bool
    """Whether `apply` wants the policy's hidden states."""

    def apply(self, logits: Tensor, running: Sequence[Running], hidden: Tensor | None) -> None:
        """Change logits in place; temperature, top-k, top-p and min-p come afterwards.

        Args:
            logits: [n, V] float32, one row for each running request, in their order.
            running: n requests; the order changes from step to step.
            hidden: [n, H] last hidden states after the final norm, if `reads_hidden`.
        """
        ...

    def close(self, request_id: Hashable) -> None:
        """A running request has ended or was aborted."""
        ...


class _Columns:
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


@torch.inference_mode()
def check_batching(model) -> None:
    """Refuse a model that cannot be batched here, found by running one token through it.

    Args:
        model: a causal LM, or the trunk of one, on its device.
    Raises:
        ValueError: layers without a full key/value cache, or that do not attend by transformers'
            attention interface.
    """
    check_attention(model.config)
    zero = torch.zeros(1, dtype=torch.long, device=next(model.parameters()).device)
    plan = decode_plan(zero, model.dtype)
    cache = SlotCache(1, capacity=8, limit=context_length(model.config))
    cache.begin_decode(plan)
    given = {cache_argument(model): cache, "use_cache": True, "slot_plan": plan}
    reason = "its layers do not use transformers' attention interface"
    try:
        with attending_by(model.config, SLOT_ATTENTION):
            model(input_ids=zero[:, None], position_ids=zero[:, None], **given)
    except FOREIGN as error:
        reason, cause = f"{type(error).__name__}: {error}", error
    else:
        if plan.served:
            return
        cause = None
    raise ValueError(
        f"{type(model).__name__} cannot be batched continuously ({reason}): sample from it with "
        "vLLM."
    ) from cause


class DecodeBatch:
    """The running requests of a sampler.

    Args:
        model: causal LM in evaluation mode, on its device.
        eos_token_ids: tokens that end a completion.
        max_batch: rows that decode together.
        seeds: where requests without a seed get theirs.
    Raises:
        ValueError: see `check_batching`.
    """

    def __init__(
        self,
        model,
        *,
        eos_token_ids: frozenset[int],
        max_batch: int,
        seeds: torch.Generator,
    ):
        check_batching(model)
        self.model = model
        self._cache_argument = cache_argument(model)
        self.device = next(model.parameters()).device
        self.hook: LogitsHook | None = None
        """Changes the logits of every step."""
        self.live: list[Running] = []
        """Slot -> request; slots are contiguous."""
        self._context_length = context_length(model.config)
        self._eos = torch.tensor(sorted(eos_token_ids), device=self.device)
        self._seeds = seeds
        self._rows = _Columns(max_batch, self.device)
        self._cache = SlotCache(max_batch, capacity=128, limit=self._context_length)

    def admit(self, entries: list[tuple[Hashable, Request]]) -> None:
        """Fill free slots: prefill each new prompt once, copy it to the other rows that share it.

        A prompt's last token is not prefilled: it is the first token the row decodes.
        """
        source = {tuple(row.request.prompt_ids): slot for slot, row in enumerate(self.live)}
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
            self._prefill(chunk, first_slot=len(self.live))
            for key in chunk:
                source[key] = self._start(*first_of[key])
        for key, entry in copies:
            slot = self._start(*entry)
            self._cache.copy_row(source[key], slot, len(key) - 1)
        self._reorder()

    def _reorder(self) -> None:
        """Bring rows of similar length together, which is what the tiers of attention need."""
        lengths = self._rows.position[: len(self.live)].tolist()
        order = tier_order(lengths, self.device)
        moves = [(old, new, lengths[old]) for new, old in enumerate(order) if old != new]
        if moves:
            self._cache.move_rows(moves)
            self._rows.reorder(order)
            self.live = [self.live[old] for old in order]

    def _prefill(self, prompts: list[tuple[int, ...]], *, first_slot: int) -> None:
        """Keys and values of `prompts` without their last tokens, padded on the right."""
        longest = len(prompts[-1]) - 1
        if longest == 0:
            return
        padded = [list(p[:-1]) + [0] * (longest - len(p) + 1) for p in prompts]
        self._cache.begin_prefill(first_slot, longest)
        self.model(
            input_ids=torch.tensor(padded, device=self.device),
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: self._cache},
        )

    def _start(self, request_id: Hashable, request: Request) -> int:
        """Set a new row's state; returns its slot."""
        slot, rows = len(self.live), self._rows
        self.live.append(Running(request_id, request))
        budget = min(request.max_tokens, self._context_length - len(request.prompt_ids))
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

    def decode(self) -> None:
        """One forward pass and one token for each of the n live rows."""
        n, rows = len(self.live), self._rows
        plan = decode_plan(rows.position[:n], self.model.dtype)
        self._cache.begin_decode(plan)
        with attending_by(self.model.config, SLOT_ATTENTION):
            outputs = self.model(
                input_ids=rows.last[:n, None],
                position_ids=rows.position[:n, None],
                use_cache=True,
                logits_to_keep=1,
                slot_plan=plan,
                output_hidden_states=self.hook is not None and self.hook.reads_hidden,
                **{self._cache_argument: self._cache},
            )
        requests = [running.request for running in self.live]
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
            for running, token in zip(self.live, tokens.tolist(), strict=True):
                running.output.append(token)
        rows.last[:n] = tokens
        rows.count[:n] += 1
        rows.position[:n] += 1

    def _hooked(self, outputs) -> Tensor:
        """Logits [n, V] as the hook leaves them; a copy, so that the model's own stay whole."""
        logits = outputs.logits[:, -1].to(torch.float32, copy=True)
        states = outputs.hidden_states
        self.hook.apply(logits, self.live, None if states is None else states[-1][:, -1])
        return logits

    def collect(self) -> list[tuple[Hashable, Completion]]:
        """Take finished rows out of the batch."""
        n, rows = len(self.live), self._rows
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
            finished.append((self.live[slot].request_id, completion))
            self.release(slot)
        return finished[::-1]

    def release(self, slot: int) -> None:
        """Free a slot by moving the last live row into it: live rows stay contiguous."""
        last = len(self.live) - 1
        if self.hook is not None:
            self.hook.close(self.live[slot].request_id)
        if slot != last:
            self._cache.copy_row(last, slot, int(self._rows.position[last]))
            self._rows.move(last, slot)
            self.live[slot] = self.live[last]
        self.live.pop()


def _chunks(prompts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Split prompts sorted by length into prefill batches of at most `_PREFILL_TOKENS` padded."""
    chunks: list[list[tuple[int, ...]]] = []
    for prompt in prompts:
        if chunks and (len(chunks[-1]) + 1) * len(prompt) <= _PREFILL_TOKENS:
            chunks[-1].append(prompt)
        else:
            chunks.append([prompt])
    return chunks
