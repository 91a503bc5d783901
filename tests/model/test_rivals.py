"""Rivals at the prompt: their fits by hand, and that each learns what its paper says it learns."""

import math

import pytest
import scipy.stats
import torch
from torch.testing import assert_close

from lenvm_rl.core import LengthBins
from lenvm_rl.model.rivals import (
    FREEDOM,
    RIVALS,
    PromptStates,
    fit_log_t,
    fit_rival,
    log_t_bins,
    read_prompts,
)
from lenvm_rl.rollouts import Rollout

BINS = LengthBins.up_to(200)


def toy(prompts=60, samples=12, seed=0):
    """The state says the mean length; samples are log-normal around it."""
    generator = torch.Generator().manual_seed(seed)
    log_mean = 2 + 2 * torch.rand(prompts, generator=generator)
    noise = 0.2 * torch.randn(prompts, samples, generator=generator)
    lengths = (log_mean[:, None] + noise).exp().round().clamp(min=1, max=200)
    h = torch.stack([log_mean, log_mean.square()], dim=1)
    return PromptStates(h, h, h, h, lengths), log_mean


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_learns_what_the_state_says(name):
    states, _ = toy()
    rival = fit_rival(name, states, BINS)
    unseen, log_mean = toy(seed=1)
    p = rival.predict(unseen)
    assert_close(p.sum(1), torch.ones(len(p)), rtol=1e-4, atol=1e-4)
    said = BINS.of(p.clamp(min=1e-12).log()).quantile(0.5)
    assert (said.log() - log_mean).abs().mean() < 0.2
    assert len(rival.tries) == (2 if name == "tie" else 1)
    assert all(one["epoch"] >= 1 and one["loss"] < 5 for one in rival.tries)


def test_a_distribution_has_the_width_of_the_samples_and_a_median_has_none():
    states, _ = toy()
    unseen, _ = toy(seed=1)

    def width(name):
        d = BINS.of(fit_rival(name, states, BINS).predict(unseen).clamp(min=1e-12).log())
        return (d.quantile(0.9).log() - d.quantile(0.1).log()).mean()

    true = 2 * 1.2816 * 0.2
    assert width("prod_d") == pytest.approx(true, rel=0.35)
    assert width("tie") == pytest.approx(true, rel=0.35)
    assert width("prod_m") < 0.13  # one bin


def test_log_t_fit_is_the_maximum_of_its_likelihood():
    x = torch.tensor([10.0, 12.0, 15.0, 9.0, 200.0, 11.0])
    m, s = fit_log_t(x)
    _, m_scipy, s_scipy = scipy.stats.t.fit(x.log().numpy(), fdf=FREEDOM)
    assert m == pytest.approx(m_scipy, abs=0.02) and s == pytest.approx(s_scipy, rel=0.05)
    assert fit_log_t(torch.tensor([7.0]))[0] == pytest.approx(math.log(7))


def test_log_t_bins_by_hand():
    bins = LengthBins((1, 2, 4, 8))
    p = log_t_bins(torch.tensor([math.log(3.5)]), torch.tensor([1.0]), bins)[0]
    assert p.sum().item() == pytest.approx(1.0)
    assert p[2].item() == pytest.approx(0.5)  # 4 and longer: above 3.5
    z = (math.log(1.5) - math.log(3.5)) / 1.0
    assert p[0].item() == pytest.approx(scipy.stats.t.cdf(z, df=FREEDOM), rel=1e-5)


def test_states_are_those_of_the_policy(policy_dir):
    rows = [
        Rollout(
            prompt_id=f"{p}",
            sample_id=s,
            prompt_ids=[2, 3 + p],
            response_ids=[5] * (p + s + 1) + [1],
            finish_reason="stop",
        )
        for p in range(3)
        for s in range(2)
    ]
    states = read_prompts(policy_dir, rows)
    assert states.lengths.tolist() == [[2, 3], [3, 4], [4, 5]]
    assert states.last.shape == states.by_entropy.shape
    assert_close(states.most, torch.maximum(states.last, 2 * states.mean - states.last))


def test_refusals():
    states, _ = toy()
    with pytest.raises(ValueError, match="no rival 'x': use one of prod_m"):
        fit_rival("x", states, BINS)
    one = PromptStates(*(x[:1] for x in (states.last,) * 4), states.lengths[:1])
    with pytest.raises(ValueError, match="at least two prompts"):
        fit_rival("prod_d", one, BINS)
