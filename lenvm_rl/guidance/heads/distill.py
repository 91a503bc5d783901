"""Train a candidate head on what the exact scorer says of every candidate.

    loss = sum_k m_k (p(q(s, x_k)) - p(z_k))**2 / sum m,   z_k the exact logit of s + x_k

The returns of sampled completions teach a candidate head one token per state, the one that was
taken, and with it the luck of the rest of the completion. The exact scorer has an answer for all K
tokens that guidance would choose between, without that luck: distillation asks for as many as
wanted. It is no part of the paper. Only the head learns, under a trunk that stays as it is and
whose states must hold the length already: that of a candidate head which the returns have trained
(`recipes/guidance`), or the teacher's own. States beyond `max_length` tokens are not used; EOS is
no candidate, as its remaining length is 0 by definition.

Shapes: n states, K candidates, H hidden size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lenvm_rl.core import masked_mean, predict, predicted_length, squared_error
from lenvm_rl.guidance.heads.distill_states import (
    Completion,
    DistillBatch,
    DistillSettings,
    Teacher,
)
from lenvm_rl.model import LengthValueConfig, LengthValueModel, load_tokenizer
from lenvm_rl.model.decoder import context_length, eos_ids


class Distiller:
    """A candidate head and its teacher.

    Args:
        exact: LenVM with a state head; valued by `ExactScorer`.
        head: LenVM with a candidate head; its head is trained in place.
        policy: causal LM whose most probable tokens are the candidates.
        eos_token_ids: tokens that end a response.
        settings: see `DistillSettings`.
        seed: of the choice of states.
    Raises:
        ValueError: other heads, or LenVMs whose logits do not mean the same.
    """

    def __init__(
        self,
        exact: LengthValueModel,
        head: LengthValueModel,
        policy: Any,
        *,
        eos_token_ids: Iterable[int],
        settings: DistillSettings,
        seed: int = 0,
    ):
        check_pair(exact.config, head.config)
        self.settings, self._head = settings, head.eval()
        self._teacher = Teacher(
            exact, head.model, policy, eos_token_ids=eos_token_ids, settings=settings, seed=seed
        )
        self._parameters = list(head.score.parameters())
        head.requires_grad_(False)
        for parameter in self._parameters:
            parameter.requires_grad_(True)

    @classmethod
    def load(
        cls,
        *,
        exact: str | Path,
        head: str | Path | None,
        policy: str | Path,
        settings: DistillSettings,
        seed: int = 0,
        device: str = "cpu",
    ) -> Distiller:
        """From checkpoints, in float32; without `head` a fresh one on the teacher's own trunk.

        `settings.max_length` is cut to the shortest of their contexts.
        """
        teacher = LengthValueModel.from_pretrained(exact, dtype=torch.float32).to(device)
        if head is None:
            student = fresh_head(teacher)
        else:
            student = LengthValueModel.from_pretrained(head, dtype=torch.float32).to(device)
        model = AutoModelForCausalLM.from_pretrained(policy).to(device)
        context = min(context_length(x.config) for x in (teacher, student, model))
        settings = replace(settings, max_length=min(settings.max_length, context - 1))
        ends = eos_ids(model, None, load_tokenizer(policy))
        return cls(teacher, student, model, eos_token_ids=ends, settings=settings, seed=seed)

    def ask(self, completions: Sequence[Completion]) -> DistillBatch:
        """As `Teacher.ask`."""
        return self._teacher.ask(completions)

    @property
    def head(self) -> LengthValueModel:
        """The LenVM whose head is trained."""
        return self._head

    def train(
        self,
        batches: Iterable[Sequence[Completion]],
        *,
        steps: int,
        advance: Callable[[int], None] = lambda steps: None,
    ) -> list[float]:
        """Take `steps` steps, one per batch of completions; returns the loss of each.

        Raises:
            ValueError: steps below 1, no completions left, or values that are no numbers.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}.")
        optimizer = torch.optim.AdamW(
            self._parameters, lr=self.settings.learning_rate, weight_decay=0.0
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses = []
        for completions in batches:
            loss = self.loss(self.ask(completions))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            advance(1)
            if len(losses) == steps:
                return losses
        raise ValueError(f"the completions ended after {len(losses)} of {steps} steps: read more.")

    def loss(self, batch: DistillBatch) -> Tensor:
        """Mean squared difference in target space over the candidates that count (see above)."""
        target = self._head.config.target
        error = squared_error(
            predict(self._logits(batch), target=target), predict(batch.exact, target=target)
        )
        return masked_mean(error, batch.mask, denom=batch.mask.sum().clamp(min=1))

    @torch.no_grad()
    def compare(self, batches: Sequence[DistillBatch]) -> dict[str, float]:
        """How far the head is from the exact values: root mean squared difference in target
        space, mean absolute difference in tokens, share of states at which both name the same
        candidate as the shortest."""
        config = self._head.config
        space = {"gamma": config.require_gamma(), "length_scale": config.length_scale}
        squared = tokens = counted = agree = chosen = 0.0
        for batch in batches:
            mask, z = batch.mask, self._logits(batch)
            count = int(mask.sum())
            squared += self.loss(batch).item() * count
            ours, theirs = (
                predicted_length(x, target=config.target, **space).masked_fill(~mask, torch.inf)
                for x in (z, batch.exact)
            )
            tokens += float((ours - theirs)[mask].abs().sum())
            counted += count
            choice = mask.sum(1) > 1
            agree += float((ours.argmin(1) == theirs.argmin(1))[choice].sum())
            chosen += float(choice.sum())
        return {
            "rmse": math.sqrt(squared / max(counted, 1)),
            "tokens": tokens / max(counted, 1),
            "same_shortest": agree / max(chosen, 1),
        }

    def _logits(self, batch: DistillBatch) -> Tensor:
        """[n, K] z of the head; gradients flow to its parameters alone."""
        embedded = self._head.get_input_embeddings()(batch.candidates).detach()
        score: Any = self._head.score
        return score.combine(score.states(batch.hidden)[:, None], score.tokens(embedded))


def fresh_head(exact: LengthValueModel) -> LengthValueModel:
    """A random candidate head on a copy of the teacher's trunk, whose states hold the length."""
    if exact.config.head != "state":
        raise ValueError(f"the teacher has a {exact.config.head!r} head, but needs a 'state' head.")
    config = copy.deepcopy(exact.config)
    config.head = "candidate"
    model = LengthValueModel(config).to(exact.device)
    model.model.load_state_dict(exact.model.state_dict())
    return model


def check_pair(exact: LengthValueConfig, head: LengthValueConfig) -> None:
    """Refuse (ValueError) a teacher and a head whose logits do not mean the same."""
    for config, kind, name in ((exact, "state", "lenvm"), (head, "candidate", "head")):
        if config.head != kind:
            raise ValueError(
                f"--{name} has a {config.head!r} head, but a {kind!r} head is needed: a head is "
                "made by `lenvm init --head candidate`, its teacher without that option."
            )
    if exact.require_gamma() != head.require_gamma():
        raise ValueError(
            f"the LenVM has gamma {exact.gamma}, the head {head.gamma}: their values cannot be "
            "compared. Train both with one gamma."
        )
    for field in ("target", "length_scale", "vocab_size"):
        ours, theirs = getattr(head, field), getattr(exact, field)
        if ours != theirs:
            raise ValueError(f"the LenVM has {field} {theirs}, the head {ours}: they must agree.")
    shas = {(config.policy or {}).get("tokenizer_sha") for config in (exact, head)} - {None}
    if len(shas) > 1:
        raise ValueError("the LenVM and the head were made for different tokenizers.")
