"""Values that know nothing of a completion: where they come from, and what a term makes of them."""

import torch
from torch.testing import assert_close

from lenvm_rl.core import (
    content_free_values,
    discounted_returns,
    length_advantage,
    shuffled_values,
)

GAMMA = 0.9
# Two prompts; a tool's token in the second row.
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
GROUPS = torch.tensor([7, 7, 3, 3, 3])


def test_shuffled_values_stay_at_their_position_and_prompt():
    values = -torch.arange(1.0, 21).view(5, 4) / 100
    got = shuffled_values(values, MASK, GROUPS, torch.Generator().manual_seed(0))
    assert not got[MASK == 0].any() and not torch.equal(got, values * MASK)
    # Token t of each row is in column t but for row 1, whose token 1 is in column 2.
    for rows, column in (([2, 3, 4], 0), ([2, 3, 4], 1), ([2, 4], 2), ([2], 3), ([0, 1], 0)):
        assert sorted(got[rows, column].tolist()) == sorted(values[rows, column].tolist())
    assert {got[0, 1].item(), got[1, 2].item()} == {values[0, 1].item(), values[1, 2].item()}
    assert got[0, 2] == values[0, 2], "alone"


def test_every_permutation_comes():
    values, mask = -torch.tensor([[0.1], [0.2], [0.3]]), torch.ones(3, 1)
    rng = torch.Generator().manual_seed(0)
    one = torch.zeros(3)
    seen = [tuple(shuffled_values(values, mask, one, rng)[:, 0].tolist()) for _ in range(600)]
    counts = [seen.count(one) for one in set(seen)]
    assert len(counts) == 6 and min(counts) > 60


def test_content_free_values_by_hand():
    got = content_free_values(MASK, GROUPS, gamma=GAMMA)
    left = {0: [(3, 2), (4, 2, 3)], 1: [(2, 1), (3, 1, 2)], 2: [(1,), (2, 1)], 3: [(), (1,)]}

    def mean(group, t):
        of = left[t][group]
        return -sum(1 - GAMMA**n for n in of) / len(of)

    wanted = torch.zeros(5, 4)
    wanted[0, :3] = torch.tensor([mean(0, t) for t in range(3)])
    wanted[1, [0, 2]] = torch.tensor([mean(0, t) for t in range(2)])
    for row, length in ((2, 4), (3, 2), (4, 3)):
        wanted[row, :length] = torch.tensor([mean(1, t) for t in range(length)])
    assert_close(got, wanted, atol=1e-6, rtol=0)


def test_critic_free_credit_is_what_is_left_against_the_prompts_mean():
    values = content_free_values(MASK, GROUPS, gamma=GAMMA)
    ended = torch.ones(5, dtype=torch.bool)
    a = length_advantage(values, MASK, ended, gamma=GAMMA, lam=1.0)
    assert_close(a, discounted_returns(MASK, gamma=GAMMA) - values, atol=1e-6, rtol=0)
    assert abs(a[[2, 3, 4], 0].sum()) < 1e-6 and abs(a[[0, 1], 0].sum()) < 1e-6
