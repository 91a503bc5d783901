"""A refit of two numbers: nothing to do where nothing is wrong, and a stale critic repaired."""

import pytest
import torch

from lenvm_rl.core import (
    discounted_returns,
    length_advantage,
    length_to_logit,
    logit_to_value,
    recalibrate,
    remaining_length,
    value_to_logit,
)

GAMMA = 0.997
PLANS = torch.tensor([40.0, 120.0, 300.0])  # mean tokens of the three ways to think
ANSWER = 60.0  # mean tokens of an answer


def completions(rows=1000, times=1.0, seed=0):
    """Thoughts of one of three kinds, then an answer, both of geometric lengths, and exact values.

    Args:
        times: the values are those of a policy whose thoughts and answers are that much longer.
    Returns:
        logits, returns, mask, [B, T] each.
    """
    rng = torch.Generator().manual_seed(seed)
    plan = PLANS[torch.randint(3, (rows,), generator=rng)]
    thought, answer = (_geometric(m, rows, rng) for m in (plan, torch.tensor(ANSWER)))
    position = torch.arange(int((thought + answer).max()))[None]
    mask = position < (thought + answer)[:, None]
    answering = _transform(torch.tensor(times * ANSWER))
    thinking = _transform(times * plan)[:, None] * answering
    value = torch.where(position < thought[:, None], thinking, answering) - 1.0
    return value_to_logit(value), discounted_returns(mask, gamma=GAMMA), mask


def _geometric(mean, rows, rng):
    u = torch.rand(rows, generator=rng, dtype=torch.float64).clamp(min=1e-12)
    return (u.log() / torch.log1p(-1.0 / mean.double())).floor().long() + 1


def _transform(mean):
    """E[gamma**l] of a geometric length of that mean."""
    end = 1.0 / mean
    return end * GAMMA / (1.0 - (1.0 - end) * GAMMA)


def term(logits, mask, lam):
    done = torch.ones(len(mask), dtype=torch.bool)
    a = length_advantage(logit_to_value(logits), mask, done, gamma=GAMMA, lam=lam)
    return a[mask]


def test_a_critic_that_fits_is_hardly_moved():
    logits, returns, mask = completions()
    fit = recalibrate(logits, returns, mask)
    assert (fit.a, fit.b) == (pytest.approx(1.0, abs=0.1), pytest.approx(0.0, abs=0.1))
    assert fit.after == pytest.approx(fit.before, rel=0.01)
    again = recalibrate(fit(logits), returns, mask)
    assert (again.a, again.b) == (pytest.approx(1.0, abs=1e-4), pytest.approx(0.0, abs=1e-4))


def test_an_oracle_is_left_alone():
    _, returns, mask = completions()
    logits = length_to_logit(remaining_length(mask).clamp(min=0.5), gamma=GAMMA)
    fit = recalibrate(logits, returns, mask)
    assert fit.a == pytest.approx(1.0, abs=1e-4) and fit.after <= fit.before < 1e-9


@pytest.mark.parametrize("times", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("lam", [0.95, 1.0])
def test_a_stale_critic_pays_for_nothing_any_more(times, lam):
    """The policy has become `times` shorter than the one that the frozen critic knows."""
    fresh, returns, mask = completions()
    stale, _, _ = completions(times=times)
    fit = recalibrate(stale, returns, mask)
    assert fit.after < fit.before
    before, after, wanted = (term(z, mask, lam) for z in (stale, fit(stale), fresh))
    assert abs(before.mean() / before.std()) > 0.1, "else there is nothing to repair"
    assert abs(after.mean() / after.std()) < 0.05
    assert torch.corrcoef(torch.stack([after, wanted]))[0, 1] > 0.99


def test_padding_never_matters():
    logits, returns, mask = completions(rows=40)
    stale = logits + 0.7
    garbage = torch.where(mask, stale, float("nan"))
    assert recalibrate(garbage, returns, mask) == recalibrate(stale, returns, mask)


def test_a_broken_critic_is_named():
    logits, returns, mask = completions(rows=40)
    logits[3, 0] = float("nan")
    logits[4, 0] = float("inf")
    with pytest.raises(ValueError, match="2 of .* logits of the length critic are NaN or infinite"):
        recalibrate(logits, returns, mask)


def test_too_little_to_learn_from_changes_nothing():
    logits, returns, mask = completions(rows=40)
    few = mask & (torch.arange(40) < 7)[:, None]
    for case in (few, torch.zeros_like(mask)):
        fit = recalibrate(logits + 1.0, returns, case)
        assert (fit.a, fit.b) == (1.0, 0.0) and fit(logits) is logits
    flat = recalibrate(torch.ones_like(logits), returns, mask)
    assert (flat.a, flat.b) == (1.0, 0.0)


def test_a_critic_that_orders_states_the_wrong_way_is_not_turned_round():
    logits, returns, mask = completions()
    fit = recalibrate(-logits, returns, mask)
    assert fit.a > 0 and fit.after <= fit.before


def test_a_large_batch_is_read_at_evenly_spaced_states():
    logits, returns, mask = completions(rows=2500)
    assert mask.sum() > 2**18
    stale = 0.5 * logits + 1.0
    fit = recalibrate(stale, returns, mask)
    assert (fit.a, fit.b) == (pytest.approx(2.0, rel=0.02), pytest.approx(-2.0, rel=0.02))
