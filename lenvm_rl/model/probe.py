"""A probe: how much of the length do the policy's own last hidden states hold?

What serving systems do without a model of their own (TRAIL, arXiv 2410.01035): two layers are
fitted on the states that the policy computes anyway. Here they are the head of a LenVM (TRAIL's
width, 512) with the policy as its frozen trunk, and so everything that reads a LenVM reads a
probe. TRAIL classifies into ten bins of length; the probe has the target of the LenVM beside it,
V = -(1 - gamma**l), so that the two differ in what they read alone.

    states    s_0 and `PER_COMPLETION` - 1 random others of random training completions
    features  the policy's last hidden state, after its final norm, standardised
    loss      (V - G)**2, one-sided where the completion was truncated
    stop      the epoch with the least loss on every tenth prompt, which the fit does not see

Memory is that of the policy and of the states kept, whatever the size of the file.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import censored_squared_error, predict, value_targets
from lenvm_rl.model.forward import Ids, Padded, by_length, check_readable, fed, refuse_pictures
from lenvm_rl.model.heads import ValueHead
from lenvm_rl.model.length_value_model import LengthValueModel
from lenvm_rl.rollouts import Rollout, RolloutStream
from lenvm_rl.rollouts.progress import progress_bar

PER_COMPLETION = 8
WIDTH = 512
_WINDOW = 64  # completions read together
_HELD = 10  # of so many prompts one is held out of the fit
_EPOCHS = 40
_BATCH = 256
_STEPS = 20  # of an epoch at least: batches are smaller where states are few
_RATE = 1e-3


@dataclass(frozen=True)
class States:
    """N states of training completions, and what came after them."""

    hidden: Tensor
    """[N, H] float32."""
    targets: Tensor
    """[N] G, the discounted return of what was still to come."""
    censored: Tensor
    """[N] bool, where it is a bound."""
    held: Tensor
    """[N] bool, of prompts that the fit does not see."""
    completions: int
    """Completions that they are of."""


@dataclass(frozen=True)
class Probe:
    """A LenVM on the policy's frozen trunk, and how it was fitted."""

    model: LengthValueModel
    figures: dict[str, Any]
    """probe_states, probe_completions, probe_epochs and probe_mse on the prompts held out."""


def fit_probe(
    policy: str | Path,
    rollouts: str | Path,
    *,
    gamma: float,
    states: int = 16_384,
    exclude: Collection[tuple[int, ...]] = (),
    token_budget: int = 16_384,
    seed: int = 0,
    progress: bool = False,
) -> Probe:
    """Fit a probe on a policy's states along its training completions.

    Args:
        policy: directory or hub name of the policy.
        rollouts: rollout file of its completions.
        gamma: per-token discount in (0, 1).
        states: states to keep, at most.
        exclude: token ids of prompts that the fit must not see.
        token_budget: padded tokens per forward pass.
        seed: of the choice of states and of the fit.
        progress: show a bar.
    Raises:
        ValueError: no completion is left, or one that the policy cannot read.
    """
    torch.manual_seed(seed)
    model = LengthValueModel.from_policy(
        policy, gamma=gamma, frozen_trunk=True, head_hidden_size=WIDTH
    ).eval()
    found = read_states(
        model,
        rollouts,
        states=states,
        exclude=exclude,
        token_budget=token_budget,
        seed=seed,
        progress=progress,
    )
    epochs, loss = fit_head(model.score, found, seed=seed)
    figures = {
        "probe_states": len(found.targets),
        "probe_completions": found.completions,
        "probe_epochs": epochs,
        "probe_mse": loss,
    }
    return Probe(model, figures)


def read_states(
    model: LengthValueModel,
    rollouts: str | Path,
    *,
    states: int,
    exclude: Collection[tuple[int, ...]] = (),
    token_budget: int = 16_384,
    seed: int = 0,
    progress: bool = False,
) -> States:
    """At most `states` states of random completions; arguments as of `fit_probe`."""
    refused = set(exclude)
    stream = RolloutStream(rollouts, seed=seed, epochs=1)
    rng, parts = random.Random(f"lenvm-probe-{seed}"), []
    prompts: dict[tuple[int, ...], int] = {}
    kept = completions = 0
    with progress_bar("reading the policy's states", states, shown=progress) as advance:
        while kept < states and (drawn := stream.batch(_WINDOW)):
            rows = [row for row in drawn if tuple(row.prompt_ids) not in refused]
            if not rows:
                continue
            parts.append(_read(model, rows, prompts, rng, token_budget))
            completions += len(rows)
            new = min(len(parts[-1][0]), states - kept)
            kept += new
            advance(new)
    if not parts:
        raise ValueError(
            f"{rollouts} has no completion of a prompt that is not held out, so there is nothing "
            "to fit a probe on: give the rollout file that the LenVM was trained on."
        )
    hidden, targets, censored, held = (torch.cat(x)[:states] for x in zip(*parts, strict=True))
    return States(hidden, targets, censored, held, completions)


def fit_head(head: ValueHead, states: States, *, seed: int = 0) -> tuple[int, float]:
    """Fit a head in place; the epoch that was best and its mean loss on the states held out.

    Where no prompt is held out, as there are too few, the loss is that of the fit itself.
    """
    fit = ~states.held if states.held.any() else torch.ones_like(states.held)
    judge = states.held if states.held.any() else fit
    mean, spread = states.hidden[fit].mean(0), states.hidden[fit].std(0, correction=0)
    scaled = (states.hidden - mean) / spread.clamp(min=1e-6)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    rows, best, kept = fit.nonzero()[:, 0], (0, float("inf")), head.state_dict()
    size = max(16, min(_BATCH, len(rows) // _STEPS))
    for epoch in range(1, _EPOCHS + 1):
        for part in rows[torch.randperm(len(rows), generator=generator)].split(size):
            optimizer.zero_grad(set_to_none=True)
            _loss(head, scaled, states, part).backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            loss = _loss(head, scaled, states, judge.nonzero()[:, 0]).item()
        if loss < best[1]:
            best, kept = (epoch, loss), copy.deepcopy(head.state_dict())
    head.load_state_dict(kept)
    with torch.no_grad():  # the standardisation becomes part of the first layer
        head.fc.weight.div_(spread.clamp(min=1e-6))
        head.fc.bias.sub_(head.fc.weight @ mean)
    return best


def _loss(head: ValueHead, scaled: Tensor, states: States, rows: Tensor) -> Tensor:
    values = predict(head(scaled[rows]), target="return")
    return censored_squared_error(values, states.targets[rows], states.censored[rows]).mean()


@torch.no_grad()
def _read(
    model: LengthValueModel,
    rows: Sequence[Rollout],
    prompts: dict[tuple[int, ...], int],
    rng: random.Random,
    token_budget: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, targets, censored and held of the states drawn from a few completions.

    Args:
        prompts: numbers of the prompts met so far, in the order of their first completion.
    """
    for row in rows:
        check_readable(model.config, row)
        refuse_pictures(row, "the probe")
    pairs: list[tuple[Ids, Ids]] = [(row.prompt_ids, row.response_ids) for row in rows]
    found: list[tuple[Tensor, ...]] = []
    for batch in by_length(list(map(fed, pairs)), token_budget):
        padded = Padded.of([pairs[i] for i in batch])
        ended = torch.tensor([not rows[i].truncated for i in batch])
        targets, _, censored = value_targets(
            padded.states, ended, gamma=model.config.require_gamma(), truncated="censored"
        )
        hidden = model.model(input_ids=padded.ids, use_cache=False).last_hidden_state.float()
        for k, i in enumerate(batch):
            first, length = len(rows[i].prompt_ids) - 1, len(rows[i].response_ids)
            others = rng.sample(range(1, length), min(PER_COMPLETION, length) - 1)
            at = torch.tensor([first, *(first + t for t in others)])
            number = prompts.setdefault(tuple(rows[i].prompt_ids), len(prompts))
            held = torch.full((len(at),), number % _HELD == _HELD - 1)
            found.append((hidden[k, at], targets[k, at], censored[k, at], held))
    hidden, targets, censored, held = (torch.cat(x) for x in zip(*found, strict=True))
    return hidden, targets, censored, held
