"""Small critics reach the known optimum on synthetic lengths, also when completions are cut.

A policy of memoryless styles: in style k every token is the last with probability p_k. Every
state of a response then has the same value, which is known in closed form.
"""

import math

import pytest
import torch

from lenvm_rl.core import (
    censored_squared_error,
    discounted_returns,
    logit_to_value,
    masked_mean,
    squared_error,
    value_targets,
)

GAMMA = 0.98
STOP = torch.tensor([0.5, 0.2, 0.05, 0.02])
# E[gamma**l] = p gamma / (1 - (1 - p) gamma) for a geometric length with P(l = 1) = p.
OPTIMUM = STOP * GAMMA / (1 - (1 - STOP) * GAMMA) - 1


def sample(per_style: int, limit: int):
    """Styles [B], response mask [B, T] and whether the completion ended before the limit [B].

    The lengths are evenly spaced quantiles: next to no sampling noise from few rows.
    """
    style = torch.arange(len(STOP)).repeat_interleave(per_style)
    uniform = ((torch.arange(per_style) + 0.5) / per_style).repeat(len(STOP))
    length = (uniform.log() / torch.log1p(-STOP[style])).ceil().clamp(min=1)
    mask = torch.arange(limit)[None, :] < length[:, None]
    return style, mask, length <= limit


class StyleCritic(torch.nn.Module):
    """Embedding of the style, two-layer head with SiLU: one logit for all states of a row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Sequential(
            torch.nn.Embedding(len(STOP), 16),
            torch.nn.Linear(16, 16),
            torch.nn.SiLU(),
            torch.nn.Linear(16, 1),
        )

    def forward(self, style, width):
        return self.head(style).expand(-1, width)

    def values(self):
        with torch.no_grad():
            return logit_to_value(self.head(torch.arange(len(STOP))).squeeze(-1))


def fit(critic, loss_of_logits, style, mask, *, steps=250):
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        logit = critic(style, mask.shape[1])
        loss, weights = loss_of_logits(logit)
        optimizer.zero_grad()
        masked_mean(loss, weights, denom=weights.sum()).backward()
        optimizer.step()
        schedule.step()
    return critic.values()


def test_critic_reaches_the_known_optimum():
    style, mask, _ = sample(per_style=150, limit=500)
    goal = discounted_returns(mask, gamma=GAMMA)

    def loss_of_logits(logit):
        return squared_error(logit_to_value(logit), goal), mask

    values = fit(StyleCritic(), loss_of_logits, style, mask)
    # Closely: the token mean of the sampled returns; up to the quantiles: the closed form.
    for k in range(len(STOP)):
        chosen = mask & (style == k)[:, None]
        assert values[k].item() == pytest.approx(goal[chosen].mean().item(), abs=2e-3)
    assert (values - OPTIMUM).abs().max() < 0.02


def test_cut_completions_bias_drop_and_not_bootstrap():
    """At a limit of 40 tokens drop sees short responses only; bootstrapping finds the truth."""
    style, mask, finished = sample(per_style=200, limit=40)
    assert 0.05 < 1 - finished.float().mean() < 0.5
    found = {}
    for truncated in ("drop", "bootstrap", "censored"):
        critic = StyleCritic()

        def loss_of_logits(logit, truncated=truncated):
            value = logit_to_value(logit)
            goal, weights, censored = value_targets(
                mask, finished, gamma=GAMMA, truncated=truncated, values=value
            )
            return censored_squared_error(value, goal, censored), weights

        found[truncated] = fit(critic, loss_of_logits, style, mask)
    # Style 3 (mean 50 tokens) is cut about half of the time.
    error = {truncated: (values - OPTIMUM)[3].item() for truncated, values in found.items()}
    assert error["drop"] > 0.1  # values too high: lengths too short
    assert abs(error["bootstrap"]) < 0.03
    assert abs(error["censored"]) < error["drop"]
    for values in found.values():  # the short styles are hardly ever cut
        assert (values - OPTIMUM)[:2].abs().max() < 0.02


def test_the_optimum_is_what_it_claims():
    lengths = torch.arange(1, 5000, dtype=torch.float64)
    for stop, value in zip(STOP.tolist(), OPTIMUM.tolist(), strict=True):
        chance = stop * torch.exp((lengths - 1) * math.log1p(-stop))
        mean = -(chance * (1 - GAMMA**lengths)).sum().item()
        assert mean == pytest.approx(value, rel=1e-5)
