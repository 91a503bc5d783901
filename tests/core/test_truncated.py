"""Completions truncated by the token limit: dropped, bootstrapped or censored."""

import math

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import (
    TRUNCATIONS,
    boundary_weights,
    censored_squared_error,
    discounted_returns,
    gae,
    label,
    lambda_returns,
    length_rewards,
    length_targets,
    masked_sum,
    value_targets,
)

GAMMA = 0.5
# Row 0 finished with 3 tokens, row 1 cut after 3 (left-padded), row 2 cut after 1.
MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
FINISHED = torch.tensor([True, False, False])
CLOSED = torch.tensor([[-0.875, -0.75, -0.5, 0], [0, -0.875, -0.75, -0.5], [-0.5, 0, 0, 0]])
VALUES = torch.tensor([[-0.1, -0.2, -0.3, 9.0], [9.0, -0.6, -0.7, -0.8], [-0.9, 9.0, 9.0, 9.0]])


def test_drop_by_hand():
    targets, weights, censored = value_targets(MASK, FINISHED, gamma=GAMMA, truncated="drop")
    assert_close(targets[0], CLOSED[0])
    assert_close(weights, torch.tensor([[1.0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert not censored.any()


def test_censored_by_hand():
    targets, weights, censored = value_targets(MASK, FINISHED, gamma=GAMMA, truncated="censored")
    assert_close(targets, CLOSED)  # n - t seen tokens: the bound, here of rows 1 and 2
    assert_close(weights, MASK.float())
    expected = [[False] * 4, [False, True, True, True], [True, False, False, False]]
    assert censored.tolist() == expected


def test_bootstrap_from_the_last_available_state_by_hand():
    targets, weights, censored = value_targets(
        MASK, FINISHED, gamma=GAMMA, truncated="bootstrap", values=VALUES
    )
    # V(s_2) = -.8 ends row 1: G_1 = -.5 + .5 * -.8 = -.9, G_0 = -.5 + .5 * -.9 = -.95.
    expected = torch.tensor([[-0.875, -0.75, -0.5, 0], [0, -0.95, -0.9, 0], [0, 0, 0, 0]])
    assert_close(targets, expected)
    assert_close(weights, torch.tensor([[1.0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]))
    assert not censored.any()


def test_bootstrap_from_the_state_after_the_last_token_by_hand():
    after = torch.tensor([-0.7, -0.4, -0.6])  # row 0 is finished: its entry must not matter
    targets, weights, _ = value_targets(
        MASK, FINISHED, gamma=GAMMA, truncated="bootstrap", values=VALUES, bootstrap_value=after
    )
    # G_2 = -.5 + .5 * -.4 = -.7, G_1 = -.85, G_0 = -.925; row 2: -.5 + .5 * -.6.
    expected = torch.tensor([[-0.875, -0.75, -0.5, 0], [0, -0.925, -0.85, -0.7], [-0.8, 0, 0, 0]])
    assert_close(targets, expected)
    assert_close(weights, MASK.float())


@pytest.mark.parametrize("truncated", TRUNCATIONS)
@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_finished_rows_get_plain_lambda_returns(truncated, lam):
    targets, weights, censored = value_targets(
        MASK, FINISHED, gamma=GAMMA, lam=lam, truncated=truncated, values=VALUES
    )
    rewards = length_rewards(MASK, gamma=GAMMA)
    expected = lambda_returns(rewards, VALUES, MASK, gamma=GAMMA, lam=lam)
    assert_close(targets[0], expected[0])
    assert_close(weights[0], MASK[0].float())
    assert not censored[0].any()


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_censored_rows_get_the_bound_whatever_lambda(lam):
    targets, weights, censored = value_targets(
        MASK, FINISHED, gamma=GAMMA, lam=lam, truncated="censored", values=VALUES
    )
    assert_close(targets[1:], CLOSED[1:])
    assert_close(weights, MASK.float())
    assert torch.equal(censored[1:], MASK[1:].bool())


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_target_is_value_plus_advantage(lam):
    targets, _, _ = value_targets(
        MASK, torch.ones(3, dtype=torch.bool), gamma=GAMMA, lam=lam, values=VALUES
    )
    rewards = length_rewards(MASK, gamma=GAMMA)
    advantage = gae(rewards, VALUES, MASK, gamma=GAMMA, lam=lam)
    assert_close(targets[MASK.bool()], (VALUES + advantage)[MASK.bool()])


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_bootstrap_of_true_values_gives_the_true_returns(lam):
    whole = torch.ones(1, 20)
    true = discounted_returns(whole, gamma=0.9)
    seen = torch.ones(1, 12)
    for end in (None, true[:, 12]):
        targets, weights, _ = value_targets(
            seen,
            torch.tensor([False]),
            gamma=0.9,
            lam=lam,
            truncated="bootstrap",
            values=true[:, :12],
            bootstrap_value=end,
        )
        counted = weights.bool()
        assert counted.sum() == (11 if end is None else 12)
        assert_close(targets[counted], true[:, :12][counted])


def test_censored_loss_is_one_sided_in_length():
    targets, weights, censored = value_targets(MASK, FINISHED, gamma=GAMMA, truncated="censored")
    longer, shorter = targets - 0.01, targets + 0.01
    loss = censored_squared_error(longer, targets, censored)
    assert masked_sum(loss[1:], weights[1:]) == 0
    assert masked_sum(loss[:1], weights[:1]).item() == pytest.approx(3e-4, rel=1e-4)
    loss = censored_squared_error(shorter, targets, censored)
    assert masked_sum(loss, weights).item() == pytest.approx(7e-4, rel=1e-4)


@pytest.mark.parametrize("truncated", ["drop", "censored"])
def test_length_targets_agree_with_value_targets(truncated):
    lengths, weights, censored = length_targets(MASK, FINISHED, truncated=truncated)
    targets, value_weights, value_censored = value_targets(
        MASK, FINISHED, gamma=0.997, truncated=truncated
    )
    assert_close(label(lengths, gamma=0.997), targets)
    assert torch.equal(weights, value_weights)
    assert torch.equal(censored, value_censored)


@pytest.mark.parametrize("truncated", TRUNCATIONS)
def test_padding_contents_never_matter(truncated):
    arguments = {"gamma": GAMMA, "lam": 0.6, "truncated": truncated}
    clean = value_targets(MASK, FINISHED, values=VALUES, **arguments)
    dirty_values = VALUES.masked_fill(MASK == 0, math.nan)
    dirty = value_targets(MASK, FINISHED, values=dirty_values, **arguments)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


def test_targets_are_constants():
    values = VALUES.clone().requires_grad_()
    targets, weights, _ = value_targets(
        MASK, FINISHED, gamma=GAMMA, lam=0.5, truncated="bootstrap", values=values
    )
    assert not targets.requires_grad and not weights.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.0}, "gamma must be in"),
        (
            {"gamma": 0.9, "truncated": "keep"},
            "unknown truncated 'keep': use one of drop, bootstrap, censored",
        ),
        ({"gamma": 0.9, "lam": -0.1}, r"lam must be in \[0, 1\]"),
        ({"gamma": 0.9, "lam": 0.5}, "values are missing: lam=0.5 with truncated='drop'"),
        (
            {"gamma": 0.9, "truncated": "bootstrap"},
            "values are missing: lam=1 with truncated='bootstrap'",
        ),
        (
            {"gamma": 0.9, "truncated": "bootstrap", "values": VALUES[:, :3]},
            "must have the same shape",
        ),
        (
            {
                "gamma": 0.9,
                "truncated": "bootstrap",
                "values": VALUES,
                "bootstrap_value": torch.zeros(2),
            },
            r"bootstrap_value must be a number or have shape \[3\]",
        ),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        value_targets(MASK, FINISHED, **arguments)


def test_bad_finished():
    for call in (lambda f: value_targets(MASK, f, gamma=0.9), lambda f: length_targets(MASK, f)):
        with pytest.raises(ValueError, match=r"one entry per row of response_mask, \[3\]"):
            call(FINISHED[:2])
    with pytest.raises(
        ValueError, match="unknown truncated 'bootstrap': use one of drop, censored"
    ):
        length_targets(MASK, FINISHED, truncated="bootstrap")


def test_boundary_weights_by_hand():
    weights = boundary_weights(MASK, boundary_weight=7.0)
    assert weights.tolist() == [[7, 1, 1, 0], [0, 7, 1, 1], [7, 0, 0, 0]]
    assert torch.equal(boundary_weights(MASK, boundary_weight=1.0), MASK.float())


def test_a_boundary_weight_moves_no_minimum():
    """The mean of the returns minimises the loss of a state shared by rows, whatever its weight."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    targets = discounted_returns(mask, gamma=GAMMA)
    best = targets[:, 0].mean()
    for weight in (0.5, 1.0, 20.0):
        value = best.clone().requires_grad_()
        error = (value - targets[:, 0]) ** 2 * boundary_weights(mask, boundary_weight=weight)[:, 0]
        error.sum().backward()
        assert value.grad.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_boundary_weight_is_a_positive_number(weight):
    with pytest.raises(ValueError, match="boundary_weight must be a positive number"):
        boundary_weights(MASK, boundary_weight=weight)
