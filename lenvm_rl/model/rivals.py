"""Rivals at the prompt: published predictors of the length, fitted on the policy's own states.

Each reads the policy's last hidden states over the prompt (after the final norm), and is a head of
two layers of `probe.WIDTH`, as TRAIL's. What differs is what they pool, fit and say:

    prod_m   ProD, median (arXiv 2604.07931): the state of the last prompt token; absolute error
             to the median of the prompt's samples; says one number
    prod_d   ProD, distribution: the same state; cross entropy to the histogram of the samples
    egtp     entropy-guided token pooling (arXiv 2602.11812): states of all prompt tokens weighted
             by softmax of the entropy of the policy's next token; cross entropy to a label that
             is smoothed over neighbouring bins, and squared error of the log of its mean
    tie      TIE (arXiv 2604.00499): last, mean and maximum of the states; location and log(1 +
             scale) of a log-t distribution with 3.5 degrees of freedom, each standardised, fitted
             to the samples of each prompt beforehand; squared error, a head for each of the two

All answer with probabilities of the bins of the LenVM beside them (a number: its bin alone), so
that one code scores all. TIE's own encoder (DeBERTa) and EGTP's later re-predictions are left out.

Equal tries: every rival is fitted with each of `RATES`, keeps its best epoch on every tenth prompt
(`probe`), and the rate with the least loss there is used.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lenvm_rl.core import LengthBins
from lenvm_rl.model.forward import refuse_pictures
from lenvm_rl.model.probe import WIDTH
from lenvm_rl.rollouts import Rollout

RIVALS = ("prod_m", "prod_d", "egtp", "tie")
RATES = (3e-4, 1e-3, 3e-3)
FREEDOM = 3.5
"""Degrees of freedom of TIE's t distribution."""
_HELD = 10  # of so many prompts one is held out of the fit
_EPOCHS = 150
_BATCH = 64
_SMEAR = 1.0  # deviation of EGTP's labels in bins


@dataclass(frozen=True)
class PromptStates:
    """P prompts, and what came after them."""

    last: Tensor
    """[P, H] state of the last prompt token."""
    mean: Tensor
    """[P, H] over the prompt's tokens."""
    most: Tensor
    """[P, H] maximum over them."""
    by_entropy: Tensor
    """[P, H] weighted by softmax of the next token's entropy."""
    lengths: Tensor
    """[P, G] response tokens of the samples, 0 where there are fewer."""


@torch.inference_mode()
def read_prompts(policy: str | Path, rows: Sequence[Rollout]) -> PromptStates:
    """One pass of the policy over every prompt, in the order of their first completion.

    Args:
        policy: directory or hub name of a causal LM.
        rows: completions; truncated ones count with the length seen.
    """
    model = AutoModelForCausalLM.from_pretrained(str(policy), dtype=torch.float32).eval()
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        refuse_pictures(row, "what predicts from the policy's states at the prompt")
        groups.setdefault(tuple(row.prompt_ids), []).append(row.length)
    pooled = []
    for prompt in groups:
        out = model(torch.tensor([prompt]), output_hidden_states=True, use_cache=False)
        h, logp = out.hidden_states[-1][0], out.logits[0].log_softmax(-1)
        weights = -(logp.exp() * logp).sum(-1)
        pooled.append((h[-1], h.mean(0), h.max(0).values, weights.softmax(0) @ h))
    width = max(map(len, groups.values()))
    lengths = torch.zeros(len(groups), width)
    for i, group in enumerate(groups.values()):
        lengths[i, : len(group)] = torch.tensor(group, dtype=torch.float32)
    last, mean, most, by_entropy = (torch.stack(x) for x in zip(*pooled, strict=True))
    return PromptStates(last, mean, most, by_entropy, lengths)


@dataclass(frozen=True)
class Rival:
    """One fitted rival."""

    name: str
    predict: Callable[[PromptStates], Tensor]
    """Probabilities [P, K] of the bins."""
    tries: list[dict[str, Any]]
    """Of each head rate, epoch and loss of the try that is used."""


def fit_rival(name: str, states: PromptStates, bins: LengthBins, *, seed: int = 0) -> Rival:
    """Fit one of `RIVALS` on training prompts.

    Args:
        name: which.
        states: training prompts with their samples.
        bins: of its answers.
        seed: of the heads' first weights and of the order of batches.
    Raises:
        ValueError: an unknown name, or fewer than two prompts.
    """
    if name not in RIVALS:
        raise ValueError(f"no rival {name!r}: use one of {', '.join(RIVALS)}.")
    if len(states.lengths) < 2:
        raise ValueError("rivals are fitted on at least two prompts; this file has fewer.")
    task = _TASKS[name](states, bins)
    x = task.features(states)
    held = torch.arange(len(x)) % _HELD == _HELD - 1
    fit, judge = (~held, held) if held.any() else (~held, ~held)
    mean, spread = x[fit].mean(0), x[fit].std(0, correction=0).clamp(min=1e-6)
    x = (x - mean) / spread
    best = [
        min((_fit(task, head, x, fit, judge, rate, seed) for rate in RATES), key=lambda t: t.loss)
        for head in range(task.heads)
    ]

    @torch.inference_mode()
    def predict(asked: PromptStates) -> Tensor:
        y = (task.features(asked) - mean) / spread
        return task.answer(torch.cat([one.net(y) for one in best], dim=1))

    return Rival(name, predict, [{"rate": t.rate, "epoch": t.epoch, "loss": t.loss} for t in best])


@dataclass(frozen=True)
class _Try:
    loss: float
    """On the prompts that the fit does not see."""
    epoch: int
    net: nn.Module
    rate: float


def _fit(
    task: _Task, head: int, x: Tensor, fit: Tensor, judge: Tensor, rate: float, seed: int
) -> _Try:
    """The best epoch of one head at one rate."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], WIDTH), nn.SiLU(), nn.Linear(WIDTH, task.outputs))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    rows, best = fit.nonzero()[:, 0], (float("inf"), 0, net.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, _EPOCHS + 1):
        for part in rows[torch.randperm(len(rows), generator=generator)].split(_BATCH):
            optimizer.zero_grad(set_to_none=True)
            task.loss(net(x[part]), part, head).mean().backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            loss = task.loss(net(x[judge]), judge.nonzero()[:, 0], head).mean().item()
        if loss < best[0]:
            best = (loss, epoch, copy.deepcopy(net.state_dict()))
    net.load_state_dict(best[2])
    return _Try(best[0], best[1], net, rate)


class _Task(ABC):
    """What a rival reads, fits and answers."""

    heads = 1
    outputs: int
    """Of each head."""

    def __init__(self, states: PromptStates, bins: LengthBins):
        self.bins, self.there = bins, states.lengths > 0
        self.lengths = states.lengths
        index = bins.index(states.lengths.clamp(min=1))
        counts = torch.nn.functional.one_hot(index, len(bins)) * self.there[..., None]
        self.histogram = counts.sum(1) / self.there.sum(1, keepdim=True)  # [P, K]

    def features(self, states: PromptStates) -> Tensor:
        return states.last

    @abstractmethod
    def loss(self, out: Tensor, rows: Tensor, head: int) -> Tensor:
        """[N] of one head, of the prompts `rows`."""

    @abstractmethod
    def answer(self, out: Tensor) -> Tensor:
        """[N, K] probabilities, of the outputs of all heads."""


class _ProdD(_Task):
    def __init__(self, states: PromptStates, bins: LengthBins):
        super().__init__(states, bins)
        self.outputs = len(bins)

    def loss(self, out: Tensor, rows: Tensor, head: int) -> Tensor:
        return -(self.histogram[rows] * out.log_softmax(-1)).sum(-1)

    def answer(self, out: Tensor) -> Tensor:
        return out.softmax(-1)


class _ProdM(_Task):
    outputs = 1

    def __init__(self, states: PromptStates, bins: LengthBins):
        super().__init__(states, bins)
        known = states.lengths.masked_fill(~self.there, torch.nan)
        self.median = known.nanquantile(0.5, dim=1)
        self.scale = self.median.mean()

    def loss(self, out: Tensor, rows: Tensor, head: int) -> Tensor:
        return (out[:, 0] * self.scale - self.median[rows]).abs() / self.scale

    def answer(self, out: Tensor) -> Tensor:
        lengths = (out[:, 0] * self.scale).clamp(min=1.0)
        return torch.nn.functional.one_hot(self.bins.index(lengths), len(self.bins)).float()


class _Egtp(_ProdD):
    def __init__(self, states: PromptStates, bins: LengthBins):
        super().__init__(states, bins)
        k = torch.arange(len(bins), dtype=torch.float32)
        near = torch.softmax(-0.5 * ((k[:, None] - k) / _SMEAR).square(), dim=-1)
        self.soft = self.histogram @ near
        middle = torch.tensor(bins.edges, dtype=torch.float32)
        self.log_middle = ((middle[:-1] + middle[1:] - 1) / 2).log()
        self.log_mean = (states.lengths.sum(1) / self.there.sum(1)).log()

    def features(self, states: PromptStates) -> Tensor:
        return states.by_entropy

    def loss(self, out: Tensor, rows: Tensor, head: int) -> Tensor:
        said = (out.softmax(-1) * self.log_middle.exp()).sum(-1).log()
        entropy = -(self.soft[rows] * out.log_softmax(-1)).sum(-1)
        return entropy + (said - self.log_mean[rows]).square()


class _Tie(_Task):
    heads, outputs = 2, 1

    def __init__(self, states: PromptStates, bins: LengthBins):
        super().__init__(states, bins)
        fitted = torch.tensor(
            [fit_log_t(row[there]) for row, there in zip(self.lengths, self.there, strict=True)]
        )
        targets = torch.stack([fitted[:, 0], fitted[:, 1].log1p()], dim=1)
        self.center, self.spread = targets.mean(0), targets.std(0).clamp(min=1e-6)
        self.targets = (targets - self.center) / self.spread

    def features(self, states: PromptStates) -> Tensor:
        return torch.cat([states.last, states.mean, states.most], dim=1)

    def loss(self, out: Tensor, rows: Tensor, head: int) -> Tensor:
        return (out[:, 0] - self.targets[rows, head]).square()

    def answer(self, out: Tensor) -> Tensor:
        location, scale = (out * self.spread + self.center).unbind(1)
        return log_t_bins(location, scale.expm1().clamp(min=1e-3), self.bins)


_TASKS: dict[str, type[_Task]] = {"prod_m": _ProdM, "prod_d": _ProdD, "egtp": _Egtp, "tie": _Tie}


def fit_log_t(lengths: Tensor, *, rounds: int = 50) -> tuple[float, float]:
    """Maximum likelihood of location and scale of ln l under a t distribution of `FREEDOM` degrees.

    By expectation maximisation: each sample weighs (v + 1) / (v + ((ln l - m) / s)**2).

    Args:
        lengths: [n] tokens, n >= 1.
        rounds: of the maximisation.
    """
    x = lengths.double().log()
    m, s = x.mean(), x.std(correction=0).clamp(min=1e-3)
    for _ in range(rounds):
        w = (FREEDOM + 1) / (FREEDOM + ((x - m) / s).square())
        m = (w * x).sum() / w.sum()
        s = (w * (x - m).square()).mean().sqrt().clamp(min=1e-3)
    return m.item(), s.item()


def log_t_bins(location: Tensor, scale: Tensor, bins: LengthBins) -> Tensor:
    """Probabilities [N, K] of the bins; what lies below one token counts as one.

    Args:
        location, scale: [N] of ln l.
        bins: edges between whole lengths are taken half a token below their first.
    """
    import scipy.stats  # of the extra `evals`

    ends = torch.tensor(bins.edges[1:-1], dtype=torch.float64) - 0.5
    z = (ends.log() - location.double()[:, None]) / scale.double()[:, None]
    below = torch.from_numpy(scipy.stats.t.cdf(z.numpy(), df=FREEDOM))
    whole = torch.cat([torch.zeros(len(z), 1), below, torch.ones(len(z), 1)], dim=1)
    return whole.diff(dim=1).float()
