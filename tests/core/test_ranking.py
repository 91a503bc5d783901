"""1-of-k accuracy: by hand, of an oracle, of a coin, and what takes no part."""

import math

import pytest
import torch

from lenvm_rl.core import remaining_length, shortest_of_group


def rows_of(*lengths):
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def test_by_hand():
    mask = rows_of(2, 4, 3, 5, 2)
    groups = torch.tensor([0, 0, 1, 1, 1])
    left = torch.zeros(5, 5)
    # Group 0 is read at state 1 (half of 2 tokens), group 1 too.
    left[:, 1] = torch.tensor([1.0, 3.0, 0.5, 4.0, 1.0])  # group 1: picks the one of 3 tokens
    done = torch.ones(5, dtype=torch.bool)
    got = shortest_of_group(left, mask, done, groups)
    assert (got.accuracy, got.groups) == (0.5, 2)
    assert got.chance == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_an_oracle_is_right_and_a_constant_is_a_guess():
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (200,), generator=rng)
    mask = rows_of(*lengths.tolist())
    groups = torch.arange(200) // 4
    done = torch.ones(200, dtype=torch.bool)
    oracle = shortest_of_group(remaining_length(mask), mask, done, groups, position=0.8)
    assert oracle.accuracy == 1.0 and oracle.groups == 50
    blind = shortest_of_group(torch.ones(mask.shape), mask, done, groups)
    assert blind.accuracy == pytest.approx(blind.chance)
    assert blind.chance == pytest.approx(0.25, abs=0.03)


def test_cut_samples_and_groups_of_one_length_take_no_part():
    mask = rows_of(3, 3, 1, 4)
    groups = torch.tensor([0, 0, 1, 1])
    finished = torch.tensor([True, True, True, False])
    got = shortest_of_group(remaining_length(mask), mask, finished, groups)
    assert got.groups == 0 and math.isnan(got.accuracy) and math.isnan(got.chance)


def test_a_position_at_the_end_is_refused():
    mask = rows_of(2, 3)
    with pytest.raises(ValueError, match="position must be below 1"):
        shortest_of_group(
            remaining_length(mask), mask, mask[:, 0], torch.tensor([0, 0]), position=1.0
        )
