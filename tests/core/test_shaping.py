"""Potential shaping and budgets: by hand, telescoping sums, and the trap of undiscounted sums."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lenvm_rl.core import (
    budget_advantage,
    budget_potential,
    discounted_returns,
    remaining_length,
    shaping_rewards,
)


def rows_of(*lengths, width=None):
    width = width or max(lengths)
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def everything_ended(mask):
    return torch.ones(len(mask), dtype=torch.bool)


def group_centred(rewards):
    """GRPO's outcome advantage without the division: undiscounted sum, minus the group's mean."""
    total = rewards.double().sum(1)
    return total - total.mean()


def test_shaping_by_hand():
    phi = torch.tensor([[-0.8, -0.6, -0.2, 9.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    got = shaping_rewards(phi, mask, everything_ended(mask), gamma=0.5, scale=2.0)
    assert_close(got, torch.tensor([[1.0, 1.0, 0.4, 0.0]]))


def test_the_trap_of_an_undiscounted_sum():
    """A perfect value at gamma .997 pays (1 - gamma) L for length: +6.0 for 2,000 tokens."""
    mask = rows_of(100, 500, 2000)
    gamma = 0.997
    phi = discounted_returns(mask, gamma=gamma)
    done = everything_ended(mask)
    shaped = shaping_rewards(phi, mask, done, gamma=gamma, scale=1.0)
    assert_close(shaped.double().sum(1), torch.tensor([0.3, 1.5, 6.0]).double(), rtol=1e-4, atol=0)
    # So the longest of a group is praised, although every sample was worth the same.
    assert group_centred(shaped).argmax().item() == 2
    # With gamma 1 the same potentials pay at most 1, which is -Phi at the prompt.
    flat = shaping_rewards(phi, mask, done, gamma=1.0, scale=1.0)
    assert_close(flat.double().sum(1), -phi[:, 0].double(), rtol=1e-4, atol=1e-5)


@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=6),
    st.floats(-2.0, 2.0),
    st.integers(0, 1000),
)
def test_gamma_1_leaves_group_advantages_unchanged(lengths, scale, seed):
    mask = rows_of(*lengths)
    rng = torch.Generator().manual_seed(seed)
    phi = -torch.rand(mask.shape, generator=rng, dtype=torch.float64)
    phi[:, 0] = phi[0, 0]  # samples of one prompt share s_0
    task = torch.rand(mask.shape, generator=rng, dtype=torch.float64) * mask
    shaped = shaping_rewards(phi, mask, everything_ended(mask), gamma=1.0, scale=scale)
    assert_close(group_centred(task + shaped), group_centred(task), atol=1e-9, rtol=0)


@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=6),
    st.floats(0.3, 0.999),
    st.integers(0, 1000),
)
def test_discounted_returns_keep_the_order_of_trajectories(lengths, gamma, seed):
    """With the same gamma every trajectory from s_0 gains the same -Phi(s_0)."""
    mask = rows_of(*lengths)
    rng = torch.Generator().manual_seed(seed)
    phi = -torch.rand(mask.shape, generator=rng, dtype=torch.float64)
    phi[:, 0] = phi[0, 0]
    shaped = shaping_rewards(phi, mask, everything_ended(mask), gamma=gamma, scale=1.0)
    discount = gamma ** torch.arange(mask.shape[1], dtype=torch.float64)
    gained = (shaped * discount).sum(1)
    assert_close(gained, -phi[:, 0], atol=1e-9, rtol=0)


def test_a_cut_completion_keeps_its_last_potential():
    phi = torch.tensor([[-0.8, -0.6]])
    mask = torch.tensor([[1, 1]])
    truncated = torch.tensor([False])
    got = shaping_rewards(phi, mask, truncated, gamma=1.0, scale=1.0)
    assert_close(got, torch.tensor([[0.2, 0.0]]))
    end = torch.tensor([-0.5])
    known = shaping_rewards(phi, mask, truncated, gamma=1.0, scale=1.0, end_potential=end)
    assert_close(known, torch.tensor([[0.2, 0.1]]))
    # A finished row does not read it.
    done = shaping_rewards(phi, mask, ~truncated, gamma=1.0, scale=1.0, end_potential=end)
    assert_close(done, torch.tensor([[0.2, 0.6]]))


def test_the_potential_carries_no_gradient():
    phi = torch.full((1, 3), -0.5, requires_grad=True)
    mask = torch.ones(1, 3)
    assert not shaping_rewards(phi, mask, ~ALL_CUT, gamma=1.0, scale=1.0).requires_grad


ALL_CUT = torch.tensor([False])


@pytest.mark.parametrize("gamma", [0.0, 1.5, float("nan")])
def test_illegal_discounts_are_refused(gamma):
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="gamma must be in"):
        shaping_rewards(x, x, ALL_CUT, gamma=gamma, scale=1.0)


def test_a_scale_of_nan_is_refused():
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="scale must be a finite number, got nan"):
        shaping_rewards(x, x, ALL_CUT, gamma=1.0, scale=float("nan"))


def test_budget_potential_by_hand():
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1]])
    left = torch.tensor([[9.0, 6.0, 3.0, 2.0], [1.0, 4.0, 9.0, 1.0]])
    budget = torch.tensor([4, 5])
    # totals: 6, 4, 4 against 4; 1, 5, 3 against 5
    equal = budget_potential(left, mask, budget)
    assert_close(equal, torch.tensor([[0.0, -0.5, 0.0, 0.0], [-0.8, 0.0, 0.0, -0.4]]))
    at_most = budget_potential(left, mask, budget, kind="at_most")
    assert_close(at_most, torch.tensor([[0.0, -0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))


def test_budget_advantage_by_hand():
    mask = torch.tensor([[1, 1, 1]])
    left = torch.tensor([[5.0, 3.0, 1.0]])  # totals 5, 4, 3; ends at 3; budget 4
    done, budget = torch.tensor([True]), torch.tensor([4.0])
    # Phi: -1/4, 0, -1/4, end -1/4; deltas 1/4, -1/4, 0
    assert_close(
        budget_advantage(left, mask, done, budget, lam=0.0), torch.tensor([[0.25, -0.25, 0.0]])
    )
    assert_close(
        budget_advantage(left, mask, done, budget, lam=1.0), torch.tensor([[0.0, -0.25, 0.0]])
    )
    assert_close(
        budget_advantage(left, mask, done, budget, lam=0.5), torch.tensor([[0.125, -0.25, 0.0]])
    )


@pytest.mark.parametrize("kind", ["equal", "at_most"])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_true_remaining_lengths_leave_no_budget_advantage(lam, kind):
    mask = rows_of(3, 8, 5)
    budget = torch.tensor([5.0, 5.0, 5.0])
    got = budget_advantage(
        remaining_length(mask), mask, everything_ended(mask), budget, lam=lam, kind=kind
    )
    assert_close(got, torch.zeros(3, 8), atol=1e-6, rtol=0)


def test_a_small_lambda_is_the_limit_of_one_step():
    mask = rows_of(4, 6)
    rng = torch.Generator().manual_seed(0)
    left = 10 * torch.rand(mask.shape, generator=rng, dtype=torch.float64)
    args = (left, mask, everything_ended(mask), torch.tensor([5.0, 5.0]))
    assert_close(
        budget_advantage(*args, lam=1e-9), budget_advantage(*args, lam=0.0), atol=1e-8, rtol=0
    )
    assert_close(
        budget_advantage(*args, lam=1 - 1e-9),
        budget_advantage(*args, lam=1.0),
        atol=1e-7,
        rtol=0,
    )


def test_a_cut_row_is_judged_by_its_expected_end():
    mask = torch.tensor([[1, 1]])
    left = torch.tensor([[4.0, 4.0]])
    budget, truncated = torch.tensor([4.0]), torch.tensor([False])
    got = budget_advantage(left, mask, truncated, budget, lam=0.0, end_left=torch.tensor([6.0]))
    # totals 4, 5, then 2 + 6 = 8: Phi 0, -1/4, -1
    assert_close(got, torch.tensor([[-0.25, -0.75]]))
    own = budget_advantage(left, mask, truncated, budget, lam=0.0)
    assert_close(own, torch.tensor([[-0.25, 0.0]]))


def test_budgets_must_fit_the_batch():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="one entry per row"):
        budget_potential(x, x, torch.tensor([4.0]))
    with pytest.raises(ValueError, match="unknown budget kind 'about': use one of equal, at_most"):
        budget_potential(x, x, torch.tensor([4.0, 4.0]), kind="about")
