"""Length advantages: by hand, against a slow loop, what they sum to, and how terms are joined."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lenvm_rl.core import (
    combine,
    discounted_returns,
    lam_for_length,
    length_advantage,
    normalise_advantage,
)

ALL_DONE = torch.tensor([True])


def slow_advantage(values, mask, finished, gamma, lam, end):
    """One row, one token at a time; `end` is V after the last token of truncated rows."""
    out = torch.zeros_like(values)
    for b in range(mask.shape[0]):
        a, v_next = 0.0, 0.0 if finished[b] else float(end[b])
        for t in reversed(range(mask.shape[1])):
            if mask[b, t]:
                delta = -(1 - gamma) + gamma * v_next - float(values[b, t])
                a = delta + gamma * lam * a
                v_next = float(values[b, t])
                out[b, t] = a
    return out


def random_case(seed, batch=6, width=13):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, width, generator=rng) < 0.7
    values = -torch.rand(batch, width, generator=rng, dtype=torch.float64)
    finished = torch.rand(batch, generator=rng) < 0.5
    end = -torch.rand(batch, generator=rng, dtype=torch.float64)
    return values, mask, finished, end


def test_by_hand():
    # r = -0.5; deltas -0.25, -0.125, -0.25; gamma * lam = 0.25.
    values = torch.tensor([[-0.5, -0.5, -0.25, 9.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    got = length_advantage(values, mask, ALL_DONE, gamma=0.5, lam=0.5)
    assert_close(got, torch.tensor([[-0.296875, -0.1875, -0.25, 0.0]]))


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_against_a_slow_loop(seed, lam):
    values, mask, finished, end = random_case(seed)
    got = length_advantage(values, mask, finished, gamma=0.9, lam=lam, end_value=end)
    assert_close(got, slow_advantage(values, mask, finished, 0.9, lam, end))


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_true_values_of_a_certain_length_leave_no_advantage(lam):
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0]])
    values = discounted_returns(mask, gamma=0.9)
    done = torch.tensor([True, True, True])
    got = length_advantage(values, mask, done, gamma=0.9, lam=lam)
    assert_close(got, torch.zeros(3, 5), atol=1e-6, rtol=0)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=8), st.floats(0.5, 0.999))
def test_with_the_mean_return_as_value_the_advantages_at_the_prompt_are_centred(lengths, gamma):
    """V(s_0) = E[G]: the mean over completions of A(lam=1) at s_0 is 0, whatever comes later."""
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    values = torch.full(mask.shape, -0.3, dtype=torch.float64)
    values[:, 0] = discounted_returns(mask, gamma=gamma)[:, 0].double().mean()
    finished = torch.ones(len(lengths), dtype=torch.bool)
    got = length_advantage(values, mask, finished, gamma=gamma, lam=1.0)
    assert got[:, 0].mean().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_what_advantages_sum_to(seed):
    values, mask, _, _ = random_case(seed)
    done = torch.ones(len(mask), dtype=torch.bool)
    one = length_advantage(values, mask, done, gamma=0.9, lam=1.0)
    returns = discounted_returns(mask, gamma=0.9).double()
    assert_close(one, torch.where(mask, returns - values, 0.0), atol=1e-6, rtol=0)
    # One-step credits telescope under the discount to the return over the first value.
    steps = length_advantage(values, mask, done, gamma=0.9, lam=0.0)
    spent = mask.cumsum(1) - mask.long()
    total = (0.9 ** spent.double() * steps).sum(1)
    first = torch.where(spent + mask.long() == 1, values, 0.0) * mask
    has_tokens = mask.any(1)
    start = (returns.gather(1, mask.long().argmax(1, keepdim=True))[:, 0] - first.sum(1)) * (
        has_tokens
    )
    assert_close(total, start, atol=1e-6, rtol=0)


def test_longer_than_expected_is_worse():
    """The same values, two outcomes: the longer completion has the lower advantage everywhere."""
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    values = torch.full((2, 6), -0.3)
    done = torch.tensor([True, True])
    short, long = length_advantage(values, mask, done, gamma=0.9, lam=1.0)
    assert (short[:3] > long[:3]).all()


def test_a_cut_completion_has_no_false_end():
    values = torch.tensor([[-0.5, -0.75]])
    mask = torch.tensor([[1, 1]])
    truncated = torch.tensor([False])
    # Bellman's own end: (-0.75 + 0.5) / 0.5 = -0.5, so the last delta is 0.
    got = length_advantage(values, mask, truncated, gamma=0.5, lam=1.0)
    assert_close(got, torch.tensor([[-0.375, 0.0]]))
    # As if it had ended there: pure gain, which the policy did not earn.
    false_end = length_advantage(values, mask, ALL_DONE, gamma=0.5, lam=1.0)
    assert false_end[0, 1].item() == pytest.approx(0.25)
    # The value after the last token, where it is known.
    known = length_advantage(
        values, mask, truncated, gamma=0.5, lam=0.0, end_value=torch.tensor([-1.0])
    )
    assert known[0, 1].item() == pytest.approx(-0.25)


def test_the_end_of_a_cut_completion_stays_in_the_range_of_values():
    values = torch.tensor([[-0.1], [-1.0]])
    mask = torch.tensor([[1], [1]])
    truncated = torch.tensor([False, False])
    got = length_advantage(values, mask, truncated, gamma=0.5, lam=1.0)
    # (-0.1 + 0.5) / 0.5 is above 0, so the end is 0; a value of -1 stays -1.
    assert_close(got, torch.tensor([[-0.4], [0.0]]))


def test_padding_never_matters():
    values, mask, finished, end = random_case(7)
    garbage = torch.where(mask, values, float("nan"))
    clean = length_advantage(values, mask, finished, gamma=0.9, lam=0.7, end_value=end)
    assert_close(
        length_advantage(garbage, mask, finished, gamma=0.9, lam=0.7, end_value=end), clean
    )
    assert_close(
        length_advantage(garbage, mask, finished, gamma=0.9, lam=0.7),
        length_advantage(values, mask, finished, gamma=0.9, lam=0.7),
    )


def test_nothing_is_whitened_together():
    task = torch.tensor([[1.0, -1.0, 5.0]])
    length = torch.tensor([[0.1, 0.2, 7.0]])
    mask = torch.tensor([[1, 1, 0]])
    got = combine(task, length, mask, scale=0.5)
    assert_close(got, torch.tensor([[1.05, -0.9, 0.0]]))
    rows = combine(task.expand(2, 3), length.expand(2, 3), mask.expand(2, 3), scale=torch.eye(2, 1))
    assert_close(rows, torch.tensor([[1.1, -0.8, 0.0], [1.0, -1.0, 0.0]]))
    assert torch.equal(combine(task, length, mask, scale=0.0), task * mask)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "0.1", True])
def test_a_scale_that_is_no_number_is_refused(scale):
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="scale must be a finite number"):
        combine(x, x, x, scale=scale)


def test_a_tensor_of_scales_is_checked_too():
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"one scale per row"):
        combine(x, x, x, scale=torch.zeros(2))
    with pytest.raises(ValueError, match=r"scale must be finite"):
        combine(x, x, x, scale=torch.tensor([[0.0], [float("nan")]]))


def test_batch_std_divides_and_does_not_centre():
    a = torch.tensor([[1.0, 3.0, 99.0], [5.0, 7.0, -99.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    got = normalise_advantage(a, mask, how="batch_std")  # std of 1, 3, 5, 7 is sqrt(5)
    assert_close(got, torch.tensor([[1.0, 3.0, 0.0], [5.0, 7.0, 0.0]]) / 5**0.5)
    assert_close(normalise_advantage(a, mask), a * mask)
    assert (got.sign() == (a * mask).sign()).all()


@pytest.mark.parametrize("constant", [0.0, 0.01, -3.0])
def test_a_batch_without_spread_is_left_alone(constant):
    a = torch.full((2, 3), constant)
    mask = torch.ones(2, 3)
    assert_close(normalise_advantage(a, mask, how="batch_std"), a)
    nothing = normalise_advantage(a, torch.zeros(2, 3), how="batch_std")
    assert not nothing.any()


def test_unknown_normalisation_lists_the_known_ones():
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="unknown normalise 'whiten': use one of none, batch_std"):
        normalise_advantage(x, x, how="whiten")


@pytest.mark.parametrize(
    ("mean", "lam"), [(200 / 3, 0.95), (600.0, 1 - 1 / 180), (8000.0, 1 - 1 / 2400), (2.0, 0.0)]
)
def test_lambda_by_length(mean, lam):
    assert lam_for_length(mean) == pytest.approx(lam)
    assert 0.0 <= lam_for_length(mean) < 1.0


@given(st.floats(10.0, 50_000.0))
def test_credit_reaches_the_same_share_of_a_response_of_any_length(mean):
    gamma = 0.01 ** (1 / (5.6 * mean))  # of the 99th percentile, as the demo's lengths have it
    reach = 1.0 / (1.0 - gamma * lam_for_length(mean))
    assert reach / mean == pytest.approx(0.24, abs=0.02)


@pytest.mark.parametrize(("mean", "alpha"), [(0.0, 0.3), (float("nan"), 0.3), (10.0, -1.0)])
def test_lambda_of_no_length_is_refused(mean, alpha):
    with pytest.raises(ValueError, match="must be positive numbers"):
        lam_for_length(mean, alpha=alpha)
