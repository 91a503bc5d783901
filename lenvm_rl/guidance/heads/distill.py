"""Distillation of a candidate head from what the exact scorer says of every candidate.

    loss = sum_k m_k (p(q(s, x_k)) - p(z_k))**2 / sum m,   z_k the exact logit of s + x_k
    loss = sum_k m_k KL(exact p(s + x_k) || p(s, x_k)) / sum m,   of distributions

The returns of sampled completions teach a candidate head one token per state, the one that was
taken, and with it the luck of the rest of the completion. The exact scorer has an answer for all K
tokens that guidance would choose between, without that luck: distillation asks for as many as
wanted. It is no part of the paper. Only the head learns, under a trunk that stays as it is and
whose states must hold the length already: that of a candidate head which the returns have trained
(`recipes/guidance`), or the teacher's own. States beyond `max_length` tokens are not used; EOS is
no candidate, as its remaining length is 0 by definition.

States are drawn from completions; the candidates at a state are the policy's most probable tokens,
as in guidance; the exact scorer runs through each completion once and values the candidates of all
its states on the way. Shapes: n states, K candidates, H hidden size.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from lenvm_rl.core import (
    masked_mean,
    masked_sum,
    predict,
    predicted_length,
    select_candidates,
    squared_error,
)
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.guidance.interface import History
from lenvm_rl.model import LengthValueConfig, LengthValueModel, load_tokenizer, save_checkpoint
from lenvm_rl.model.decoder import context_length, eos_ids
from lenvm_rl.model.forward import config_space
from lenvm_rl.model.hub import check_weights
from lenvm_rl.rollouts import RolloutStream
from lenvm_rl.rollouts.progress import progress_bar

MEASURED = 16  # batches that the head is compared on, before and after
Completion = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its response."""


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How a head is distilled."""

    top_k: int = 20
    """Candidates per state: K, the policy's most probable tokens."""
    min_p: float = 0.02
    """Candidates: minimum share of the most probable one's probability, in [0, 1]."""
    states: int = 8
    """States drawn from each completion."""
    batch_size: int = 16
    """Completions per step."""
    learning_rate: float = 1e-3
    """Learning rate at the start; it falls to 0 along a cosine."""
    max_length: int = 4096
    """Maximum number of tokens of prompt and response that are read."""

    def __post_init__(self) -> None:
        for name in ("top_k", "states", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}: it is a share.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")


def distill(
    lenvm: str | Path,
    rollouts: str | Path,
    out: str | Path,
    *,
    student: str | Path | None = None,
    policy: str = "demo",
    val_rollouts: str | Path | None = None,
    steps: int = 300,
    settings: DistillSettings = DistillSettings(),  # noqa: B008  (frozen)
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Distil the exact scorer into a candidate head: the head alone learns, its trunk stays.

    Minutes of work, which begin anew if killed: OUT is written whole, at the end, or not at all.

    Example: `lenvm distill --lenvm runs/demo/checkpoint/lenvm
    --student runs/q-head/checkpoint/lenvm --rollouts runs/demo/rollouts/train
    --val-rollouts runs/demo/rollouts/validation --out runs/q-head/distilled`

    Args:
        lenvm: the teacher, a LenVM with a state head.
        rollouts: completions to draw states from.
        out: directory of the LenVM to write.
        student: LenVM with a candidate head (default: a fresh one on the teacher's trunk).
        policy: directory or name of the policy.
        val_rollouts: completions to measure on (default: the first of --rollouts).
        steps: optimizer steps.
        seed: of the choice of states.
        progress: show a bar.
    Returns:
        Losses of the first and last step, errors before and after (`Distiller.compare`).
    """
    torch.manual_seed(seed)
    distiller = Distiller.load(
        exact=lenvm,
        head=student,
        policy=policy,
        settings=settings,
        seed=seed,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    tokenizer = load_tokenizer(student or lenvm)

    def batches(path: str | Path, epochs: int | None) -> Iterator[list[Completion]]:
        stream = RolloutStream(path, seed=seed, epochs=epochs)
        while rows := stream.batch(settings.batch_size):
            yield [(row.prompt_ids, row.response_ids) for row in rows]

    held_out = batches(val_rollouts or rollouts, 1)
    measured = [distiller.ask(rows) for rows in islice(held_out, MEASURED)]
    before = distiller.compare(measured)
    with progress_bar("distilling", steps, shown=progress) as advance:
        losses = distiller.train(batches(rollouts, None), steps=steps, advance=advance)
    return {
        "lenvm": str(save_checkpoint(distiller.head.cpu(), tokenizer, out)),
        "steps": steps,
        "states": sum(len(batch.mask) for batch in measured),
        "held_out": val_rollouts is not None,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "before": before,
        "after": distiller.compare(measured),
    }


@dataclass(frozen=True, kw_only=True)
class DistillBatch:
    """States, the candidates at them, and what the exact scorer says."""

    hidden: Tensor
    """[n, H] of the head's trunk, at the states."""
    candidates: Tensor
    """[n, K] token ids."""
    mask: Tensor
    """[n, K] bool, candidates that count."""
    exact: Tensor
    """Raw outputs of the exact scorer, 0 where masked out: z [n, K], or [n, K, B] of B bins."""


class Teacher:
    """Draws states and answers for all candidates at them.

    Args:
        exact: LenVM with a state head; valued by `ExactScorer`.
        trunk: of the head that learns; gives the hidden states.
        policy: causal LM whose most probable tokens are the candidates.
        eos_token_ids: tokens that end a response.
        settings: see `DistillSettings`.
        seed: of the choice of states.
    """

    def __init__(
        self,
        exact: LengthValueModel,
        trunk: Any,
        policy: Any,
        *,
        eos_token_ids: Iterable[int],
        settings: DistillSettings,
        seed: int = 0,
    ):
        self.settings = settings
        self._trunk, self._policy = trunk.eval(), policy.eval()
        self._eos = torch.tensor(sorted(set(eos_token_ids)), device=policy.device)
        self._scorer = ExactScorer(
            exact,
            slots=settings.batch_size,
            max_length=settings.max_length + 1,
            max_candidates=settings.top_k,
        )
        self._random = random.Random(seed)

    def ask(self, completions: Sequence[Completion]) -> DistillBatch:
        """Draw states and have every candidate at them valued exactly.

        Raises:
            ValueError: no completion, a prompt or response without tokens, ids outside the
                vocabulary, or values that are no numbers (a damaged checkpoint).
        """
        if not completions:
            raise ValueError("no completions are left to distil from.")
        if len(completions) > self.settings.batch_size:
            raise ValueError(
                f"{len(completions)} completions in a step, but settings.batch_size is "
                f"{self.settings.batch_size}."
            )
        tokens, places = self._draw(completions)
        row = torch.tensor([i for i, ts in enumerate(places) for _ in ts])
        column = torch.tensor([t for ts in places for t in ts])
        with torch.no_grad():
            candidates, mask = self._candidates(tokens, row, column)
            hidden = self._states(self._trunk, tokens, row, column)
            exact = self._exact(tokens, places, candidates, mask)
        if not torch.isfinite(exact[mask]).all():
            raise ValueError("the exact LenVM gives values that are no numbers: is it damaged?")
        return DistillBatch(hidden=hidden, candidates=candidates, mask=mask, exact=exact)

    def _draw(self, completions: Sequence[Completion]) -> tuple[list[list[int]], list[list[int]]]:
        """Tokens of each completion, and columns of its last tokens before the states drawn."""
        tokens, places = [], []
        for prompt, response in completions:
            if not len(prompt) or not len(response):
                raise ValueError("a completion needs tokens in its prompt and in its response.")
            ids = [*prompt, *response][: self.settings.max_length]
            last = range(len(prompt) - 1, len(ids) - (len(ids) == len(prompt) + len(response)))
            count = min(self.settings.states, len(last))
            tokens.append(ids)
            places.append(sorted(self._random.sample(last, count)))
        if not any(places):
            raise ValueError(
                f"all prompts have more than max_length {self.settings.max_length} tokens: raise it"
            )
        size = self._scorer.config.vocab_size
        worst = max(max(ids) for ids in tokens)
        if worst >= size or min(min(ids) for ids in tokens) < 0:
            raise ValueError(
                f"token id {worst} is outside the LenVM's vocabulary of {size}: these completions "
                "are of another policy."
            )
        return tokens, places

    def _states(self, trunk: Any, tokens: list[list[int]], row: Tensor, column: Tensor) -> Tensor:
        """[n, H] last hidden states; padding lies behind, where causal attention does not look."""
        device = next(trunk.parameters()).device
        ids = pad_sequence([torch.tensor(x) for x in tokens], batch_first=True).to(device)
        hidden = trunk(input_ids=ids, use_cache=False).last_hidden_state
        return hidden[row.to(device), column.to(device)]

    def _candidates(self, tokens, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self._states(self._policy.base_model, tokens, row, column)
        logits = self._policy.get_output_embeddings()(hidden)
        logits = logits[:, : self._scorer.config.vocab_size].float()
        min_p = torch.full((len(logits),), self.settings.min_p, device=logits.device)
        ids, _, mask = select_candidates(
            logits, max_candidates=self.settings.top_k, min_p=min_p if min_p.any() else None
        )
        return ids, mask & ~torch.isin(ids, self._eos)

    def _exact(self, tokens, places, candidates: Tensor, mask: Tensor) -> Tensor:
        """Outputs [n, K] or [n, K, B]: the j-th states of all completions together, one call of
        the scorer each."""
        scorer, first = self._scorer, 0
        starts = []
        for ts in places:
            starts.append(first)
            first += len(ts)
        slots = {
            i: scorer.open(History(tokens[i][: ts[0] + 1], [])) for i, ts in enumerate(places) if ts
        }
        exact = torch.zeros((*candidates.shape, *scorer.head.width), device=scorer.device)
        try:
            for j in range(self.settings.states):
                rows = [i for i in slots if j < len(places[i])]
                if not rows:
                    break
                histories = [History(tokens[i][: places[i][j] + 1], []) for i in rows]
                which = [starts[i] + j for i in rows]
                exact[which] = scorer.outputs(
                    [slots[i] for i in rows],
                    histories,
                    candidates[which].to(scorer.device),
                    mask[which].to(scorer.device),
                ).clone()
        finally:
            for slot in slots.values():
                scorer.close(slot)
        return exact.to(candidates.device)


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
        check_weights(policy)
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
        """Mean over the candidates that count, see the module."""
        ours = self._outputs(batch)
        if self._head.score.width:
            exact = batch.exact.log_softmax(-1)
            error = (exact.exp() * (exact - ours.log_softmax(-1))).sum(-1)
        else:
            error = self._squares(ours, batch.exact)
        return masked_mean(error, batch.mask, denom=batch.mask.sum().clamp(min=1))

    def _squares(self, ours: Tensor, exact: Tensor) -> Tensor:
        """Squared differences in target space [n, K]; of distributions those of V."""
        config = self._head.config
        a, b = (predict(config.read(x), target=config.target) for x in (ours, exact))
        return squared_error(a, b)

    @torch.no_grad()
    def compare(self, batches: Sequence[DistillBatch]) -> dict[str, float]:
        """How far the head is from the exact values: root mean squared difference in target
        space, mean absolute difference in tokens, share of states at which both name the same
        candidate as the shortest."""
        config = self._head.config
        space = config_space(config)
        squared = tokens = counted = agree = chosen = 0.0
        for batch in batches:
            mask, outputs = batch.mask, self._outputs(batch)
            squared += float(masked_sum(self._squares(outputs, batch.exact), mask))
            ours, theirs = (
                predicted_length(config.read(x), **space).masked_fill(~mask, torch.inf)
                for x in (outputs, batch.exact)
            )
            tokens += float((ours - theirs)[mask].abs().sum())
            counted += int(mask.sum())
            choice = mask.sum(1) > 1
            agree += float((ours.argmin(1) == theirs.argmin(1))[choice].sum())
            chosen += float(choice.sum())
        return {
            "rmse": math.sqrt(squared / max(counted, 1)),
            "tokens": tokens / max(counted, 1),
            "same_shortest": agree / max(chosen, 1),
        }

    def _outputs(self, batch: DistillBatch) -> Tensor:
        """[n, K] or [n, K, B] of the head; gradients flow to its parameters alone."""
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
    for field in ("target", "bins", "length_scale", "vocab_size"):
        ours, theirs = getattr(head, field), getattr(exact, field)
        if ours != theirs:
            raise ValueError(f"the LenVM has {field} {theirs}, the head {ours}: they must agree.")
    shas = {(config.policy or {}).get("tokenizer_sha") for config in (exact, head)} - {None}
    if len(shas) > 1:
        raise ValueError("the LenVM and the head were made for different tokenizers.")
