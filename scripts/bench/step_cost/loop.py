"""A policy that decodes with a key/value cache, and a guide that steers it, step by step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lenvm_rl.guidance import CandidateScorer, GuidanceSettings, History
from lenvm_rl.guidance.guide import Guide, GuidedRow
from lenvm_rl.model.decoder import attending_by
from lenvm_rl.sampling.transformers.slot_cache import SLOT_ATTENTION, SlotCache, decode_plan
from scripts.bench.hardware import synchronize
from scripts.bench.step_cost.pairs import Pair

_EOS = 1
_BETA = -2.0  # a tilt: every row is steered and scored in every step


def cut_prompts(pair: Pair, requests: int, context: int) -> list[list[int]]:
    """Random prompts of unlike lengths, 80 to 100 % of `context`. All are beginnings of one
    sequence, so that a single row of the policy has to be prefilled."""
    device = pair.policy.device
    ids = torch.randint(2, pair.vocab_size, (context,), device=device).tolist()
    least = context * 4 // 5
    return [ids[: context - i * (context - least) // requests] for i in range(requests)]


class Policy:
    """R rows that decode together, a token each per step; no sampler around it.

    Args:
        prompts: beginnings of the first one, which is the longest.
        room: tokens that each row can grow by.
    """

    @torch.inference_mode()
    def __init__(self, pair: Pair, prompts: list[list[int]], room: int):
        self.model = pair.policy
        self.prompts = prompts
        self.device = self.model.device
        longest = len(prompts[0])
        self._cache = SlotCache(len(prompts), capacity=longest + room, limit=longest + room)
        self._cache.begin_prefill(0, longest)
        self.model(
            input_ids=torch.tensor(prompts[:1], device=self.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        for row, prompt in enumerate(prompts[1:], start=1):
            self._cache.copy_row(0, row, len(prompt))
        self.last = torch.tensor([prompt[-1] for prompt in prompts], device=self.device)
        self._position = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)

    def forward(self) -> tuple[Tensor, Tensor]:
        """[R, V] float32 logits of the next tokens, and the [R, H] states they were made from."""
        plan = decode_plan(self._position, self.model.dtype)
        self._cache.begin_decode(plan)
        with attending_by(self.model.config, SLOT_ATTENTION):
            output = self.model.base_model(
                input_ids=self.last[:, None],
                position_ids=self._position[:, None],
                past_key_values=self._cache,
                use_cache=True,
                slot_plan=plan,
            )
        self._position += 1
        hidden = output.last_hidden_state[:, -1]
        return self.model.get_output_embeddings()(hidden).float(), hidden

    def sample(self, logits: Tensor) -> list[int]:
        """One token per row, fed to the model in the next step."""
        self.last = torch.multinomial(logits.softmax(-1), 1)[:, 0]
        return self.last.tolist()


class Timed:
    """Any scorer, with the wall and processor seconds that `score` took."""

    def __init__(self, scorer: CandidateScorer, device: torch.device):
        self.scorer, self.config, self.device = scorer, scorer.config, device
        self.reads_policy = getattr(scorer, "reads_policy", False)
        self.wall: list[float] = []
        self.processor: list[float] = []

    def open(self, history):
        return self.scorer.open(history)

    def close(self, slot):
        self.scorer.close(slot)

    def score(self, *args, **states):
        synchronize(self.device)
        wall, processor = time.perf_counter(), time.process_time()
        logits = self.scorer.score(*args, **states)
        synchronize(self.device)
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)
        return logits


@dataclass
class Loop:
    """Decoding with or without a scorer, timed per step."""

    policy: Policy
    scorer: Timed | None
    candidates: int
    steps: list[float] = field(default_factory=list)
    """Wall seconds of each step."""

    def __post_init__(self) -> None:
        settings = GuidanceSettings(mode="tilt", beta=_BETA, top_k=self.candidates)
        self._rows = [
            GuidedRow(i, i, settings, History(prompt, []), len(prompt))
            for i, prompt in enumerate(self.policy.prompts)
        ]
        if self.scorer is not None:
            self._guide = Guide(self.scorer, eos_token_ids=[_EOS], max_candidates=self.candidates)

    @torch.inference_mode()
    def step(self) -> None:
        """The policy's forward, guidance, one sampled token per row."""
        synchronize(self.policy.device)
        started = time.perf_counter()
        logits, hidden = self.policy.forward()
        if self.scorer is not None:
            self._guide.apply(logits, self._rows, hidden=hidden)
        tokens = self.policy.sample(logits)
        for row, token in zip(self._rows, tokens, strict=True):
            row.history.output.append(token)
        self.steps.append(time.perf_counter() - started)

    def forget_times(self) -> None:
        """Drop what was measured: the steps so far were for warming up."""
        self.steps.clear()
        if self.scorer is not None:
            self.scorer.wall.clear()
            self.scorer.processor.clear()
