"""Targets of each token: by hand, against slow loops, identities between forms, masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lenvm_rl.core import (
    discounted_returns,
    gae,
    lambda_returns,
    length_rewards,
    length_to_value,
    remaining_length,
)

# Left padding, a hole (observation tokens), right padding, full, empty.
MASK = torch.tensor(
    [
        [0, 0, 1, 1, 1, 1],
        [1, 1, 0, 0, 1, 1],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
    ]
)


def slow_lambda_returns(rewards, values, mask, gamma, lam, bootstrap):
    """One row at a time, one token at a time, over the unmasked tokens alone."""
    out = torch.zeros_like(values)
    for b in range(mask.shape[0]):
        g = v_next = float(bootstrap[b])
        for t in reversed(range(mask.shape[1])):
            if mask[b, t]:
                g = float(rewards[b, t]) + gamma * ((1 - lam) * v_next + lam * g)
                v_next = float(values[b, t])
                out[b, t] = g
    return out


def random_case(seed: int, *, batch: int = 5, width: int = 17):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, width, generator=rng) < 0.7
    rewards = torch.randn(batch, width, generator=rng, dtype=torch.float64)
    values = torch.randn(batch, width, generator=rng, dtype=torch.float64)
    bootstrap = torch.randn(batch, generator=rng, dtype=torch.float64)
    return rewards, values, mask, bootstrap


def test_remaining_length_by_hand():
    expected = [
        [0, 0, 4, 3, 2, 1],
        [4, 3, 0, 0, 2, 1],
        [3, 2, 1, 0, 0, 0],
        [6, 5, 4, 3, 2, 1],
        [0, 0, 0, 0, 0, 0],
    ]
    for mask in (MASK, MASK.bool(), MASK.float()):
        assert_close(remaining_length(mask), torch.tensor(expected, dtype=torch.float32))


def test_discounted_returns_by_hand():
    expected = torch.tensor([[0.0, -0.875, -0.75, -0.5], [-0.75, -0.5, 0.0, 0.0]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    assert_close(discounted_returns(mask, gamma=0.5), expected)


def test_length_rewards_by_hand():
    mask = torch.tensor([[1, 0, 1]])
    assert_close(length_rewards(mask, gamma=0.75), torch.tensor([[-0.25, 0.0, -0.25]]))
    # Formed in float64: 1 - gamma keeps its digits.
    assert length_rewards(mask, gamma=0.99995)[0, 0].item() == pytest.approx(-5e-5, rel=1e-7)


def test_lambda_returns_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    values = torch.tensor([[10.0, 20.0, 30.0]])
    mask = torch.ones(1, 3)
    expected = {
        0.0: [[1 + 0.5 * 20, 2 + 0.5 * 30, 3.0]],
        1.0: [[1 + 0.5 * (2 + 0.5 * 3), 2 + 0.5 * 3, 3.0]],
        # t = 1: 2 + .5 (.5 * 30 + .5 * 3) = 10.25; t = 0: 1 + .5 (.5 * 20 + .5 * 10.25)
        0.5: [[8.5625, 10.25, 3.0]],
    }
    for lam, returns in expected.items():
        actual = lambda_returns(rewards, values, mask, gamma=0.5, lam=lam)
        assert_close(actual, torch.tensor(returns))
        advantage = gae(rewards, values, mask, gamma=0.5, lam=lam)
        assert_close(advantage, torch.tensor(returns) - values)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("width", [1, 2, 7, 64, 65])
def test_lambda_returns_match_the_slow_loop(lam, width):
    rewards, values, mask, bootstrap = random_case(width, width=width)
    arguments = {"gamma": 0.97, "lam": lam, "bootstrap_value": bootstrap}
    expected = slow_lambda_returns(rewards, values, mask, 0.97, lam, bootstrap)
    assert_close(lambda_returns(rewards, values, mask, **arguments), expected)
    advantage = torch.where(mask, expected - values, 0.0)
    assert_close(gae(rewards, values, mask, **arguments), advantage)


@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 40),
    gamma=st.floats(min_value=0.01, max_value=0.99999),
    lam=st.floats(min_value=0.0, max_value=1.0),
)
@settings(deadline=None, max_examples=60)
def test_lambda_returns_match_the_slow_loop_anywhere(seed, width, gamma, lam):
    rewards, values, mask, bootstrap = random_case(seed, width=width)
    actual = lambda_returns(rewards, values, mask, gamma=gamma, lam=lam, bootstrap_value=bootstrap)
    assert_close(actual, slow_lambda_returns(rewards, values, mask, gamma, lam, bootstrap))


@pytest.mark.parametrize("gamma", [0.99, 0.997, 0.9998])
def test_monte_carlo_is_lambda_one_is_closed_form(gamma):
    mask = torch.cat([MASK] * 50, dim=1)
    rewards = length_rewards(mask, gamma=gamma)
    values = torch.randn(rewards.shape, generator=torch.Generator().manual_seed(0))
    closed = discounted_returns(mask, gamma=gamma)
    assert_close(lambda_returns(rewards, values, mask, gamma=gamma, lam=1.0), closed)
    monte_carlo = slow_lambda_returns(rewards, values, mask, gamma, 1.0, torch.zeros(5))
    assert_close(monte_carlo, closed)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_of_true_values_is_zero(lam):
    rewards = length_rewards(MASK, gamma=0.9)
    values = discounted_returns(MASK, gamma=0.9)
    advantage = gae(rewards, values, MASK, gamma=0.9, lam=lam)
    assert_close(advantage, torch.zeros_like(advantage), atol=2e-7, rtol=0.0)


def test_closed_form_and_scan_agree_at_100k_tokens():
    gamma, tokens = 0.99995, 100_000
    mask = torch.ones(1, tokens)
    exact = length_to_value(torch.arange(tokens, 0, -1, dtype=torch.float64), gamma=gamma)[None]
    closed = discounted_returns(mask, gamma=gamma)
    assert_close(closed.double(), exact, rtol=5e-7, atol=0.0)
    scan = lambda_returns(
        length_rewards(mask, gamma=gamma), torch.zeros(1, tokens), mask, gamma=gamma, lam=1.0
    )
    assert scan.dtype == torch.float32
    # The rewards are float32: 1 - gamma is off by up to half a unit in the last place.
    assert_close(scan.double(), exact, rtol=3e-7, atol=0.0)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_padding_contents_never_matter(lam):
    rewards, values, mask, bootstrap = random_case(3)
    arguments = {"gamma": 0.9, "lam": lam, "bootstrap_value": bootstrap}
    clean = lambda_returns(rewards, values, mask, **arguments)
    for junk in (math.nan, math.inf, -1e30):
        dirty_rewards = rewards.masked_fill(~mask, junk)
        dirty_values = values.masked_fill(~mask, junk)
        assert torch.equal(lambda_returns(dirty_rewards, dirty_values, mask, **arguments), clean)
        dirty_gae = gae(dirty_rewards, dirty_values, mask, **arguments)
        assert torch.equal(dirty_gae, gae(rewards, values, mask, **arguments))


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_where_the_padding_lies_never_matters(lam):
    rewards, values, _, bootstrap = random_case(4, batch=2, width=6)
    whole = torch.ones(2, 6, dtype=torch.bool)
    arguments = {"gamma": 0.9, "lam": lam, "bootstrap_value": bootstrap}
    expected = lambda_returns(rewards, values, whole, **arguments)
    for left, right in ((0, 5), (5, 0), (3, 4)):

        def pad(x, left=left, right=right):
            return torch.nn.functional.pad(x, (left, right))

        actual = lambda_returns(pad(rewards), pad(values), pad(whole), **arguments)
        assert_close(actual, pad(expected))


def test_gradient_of_lambda_returns_flows_to_values():
    rewards, values, mask, _ = random_case(5, width=9)
    values = values.masked_fill(~mask, math.nan).requires_grad_()
    lambda_returns(rewards, values, mask, gamma=0.9, lam=0.5).sum().backward()
    assert values.grad.isfinite().all()
    assert (values.grad[~mask] == 0).all() and (values.grad[mask] != 0).any()


def test_dtypes_of_returns():
    ones = torch.ones(1, 2)
    half = lambda_returns(ones.bfloat16(), ones.bfloat16(), ones, gamma=0.9, lam=0.5)
    assert half.dtype == torch.float32
    double = lambda_returns(ones, ones.double(), ones, gamma=0.9, lam=0.5)
    assert double.dtype == torch.float64


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: remaining_length(torch.ones(3)), r"mask must have shape \[B, T\], got \(3,\)"),
        (lambda: discounted_returns(ONES, gamma=1.0), "gamma must be in"),
        (lambda: length_rewards(ONES, gamma=math.nan), "gamma must be in"),
        (
            lambda: lambda_returns(ONES, ONES[:, :2], ONES, gamma=0.9, lam=1.0),
            r"same shape, got rewards \(2, 3\), values \(2, 2\), mask \(2, 3\)",
        ),
        (
            lambda: lambda_returns(ONES, ONES, ONES, gamma=0.9, lam=1.1),
            r"lam must be in \[0, 1\], got 1.1",
        ),
        (lambda: gae(ONES, ONES, ONES, gamma=0.0, lam=1.0), "gamma must be in"),
        (
            lambda: gae(ONES, ONES, ONES, gamma=0.9, lam=1.0, bootstrap_value=torch.ones(3)),
            r"bootstrap_value must be a number or have shape \[2\], got \(3,\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
