"""The same numbers as verl's own GAE and value loss, forward and gradient.

verl whitens its advantages, so returns are compared. Slow: importing verl takes many seconds.
"""

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import (
    discounted_returns,
    lambda_returns,
    length_rewards,
    masked_mean,
    shaping_rewards,
    squared_error,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def core_algos():
    return pytest.importorskip("verl.trainer.ppo.core_algos")


def case(seed: int, *, holes: bool):
    """Right-padded responses [7, 33], with observation tokens inside when `holes`."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([33, 20, 7, 1, 12, 33, 5])
    mask = torch.arange(33)[None, :] < lengths[:, None]
    if holes:
        mask &= torch.rand(7, 33, generator=rng) < 0.6
    rewards = torch.randn(7, 33, generator=rng) * mask
    values = torch.randn(7, 33, generator=rng)
    return rewards, values, mask


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.9, 0.997])
def test_lambda_returns_match_verl(core_algos, gamma, lam, holes):
    rewards, values, mask = case(0, holes=holes)
    _, expected = core_algos.compute_gae_advantage_return(
        rewards, values, mask.float(), gamma=gamma, lam=lam
    )
    actual = lambda_returns(rewards, values, mask, gamma=gamma, lam=lam)
    assert_close(actual[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_closed_form_matches_verl(core_algos):
    _, values, mask = case(1, holes=False)
    _, expected = core_algos.compute_gae_advantage_return(
        length_rewards(mask, gamma=0.997), values, mask.float(), gamma=0.997, lam=1.0
    )
    actual = discounted_returns(mask, gamma=0.997)
    assert_close(actual[mask], expected[mask], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"]
)
def test_value_loss_matches_verl(core_algos, dtype, rtol):
    """verl's token-mean value loss is half of ours when its clipping is out of reach."""
    goal, old, mask = case(2, holes=True)
    start = torch.randn(goal.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    tokens = int(mask.sum()) + 100  # the global batch is larger than this micro-batch

    theirs = start.clone().requires_grad_()
    expected, _ = core_algos.compute_value_loss(
        vpreds=theirs,
        returns=goal.to(dtype),
        values=old.to(dtype),
        response_mask=mask,
        cliprange_value=1e4,
        loss_agg_mode="token-mean",
        batch_num_tokens=tokens,
    )
    expected.backward()

    ours = start.clone().requires_grad_()
    actual = 0.5 * masked_mean(squared_error(ours, goal.to(dtype)), mask, denom=tokens)
    actual.backward()
    assert_close(actual, expected, rtol=rtol, atol=0.0)
    assert_close(ours.grad, theirs.grad, rtol=rtol, atol=0.0)


def test_grpo_does_not_see_shaping_at_gamma_1_and_pays_for_length_below(core_algos):
    """verl's GRPO sums token rewards undiscounted: the trap, on verl's own code."""
    np = pytest.importorskip("numpy")
    lengths = torch.tensor([100, 500, 2000, 100, 500, 2000])
    mask = (torch.arange(2000)[None] < lengths[:, None]).float()
    task = torch.zeros(6, 2000, dtype=torch.float64)
    task[torch.arange(6), lengths - 1] = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0]).double()
    index = np.array(["a"] * 3 + ["b"] * 3, dtype=object)
    phi = discounted_returns(mask, gamma=0.997).double()
    phi[:, 0] = -0.8  # one prompt, one value
    done = torch.ones(6, dtype=torch.bool)

    def advantages(gamma):
        extra = shaping_rewards(phi, mask, done, gamma=gamma, scale=1.0)
        return core_algos.compute_grpo_outcome_advantage(
            token_level_rewards=task + extra, response_mask=mask, index=index
        )[0]

    plain = core_algos.compute_grpo_outcome_advantage(
        token_level_rewards=task, response_mask=mask, index=index
    )[0]
    assert_close(advantages(1.0), plain, atol=1e-5, rtol=0)
    paid = advantages(0.997)[:, 0]
    assert plain[4, 0] == plain[5, 0]
    assert paid[5] > paid[4] + 0.5, "both are right, and the longer one is praised: the trap"
