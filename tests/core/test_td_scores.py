"""TD scores: zero where the length was known, positive where a token made the rest longer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.core import length_to_u, td_scores


def test_by_hand():
    # u_0, u_1 | EOS; gamma .5: .5 * .75 - .5 + .5 = .375;  .5 * 0 - .75 + .5 = -.25
    scores = td_scores(torch.tensor([0.5, 0.75]), gamma=0.5)
    assert scores.tolist() == [0.375, -0.25]


@given(length=st.integers(1, 400), gamma=st.sampled_from([0.5, 0.9, 0.997, 0.9998]))
def test_a_known_length_scores_zero_everywhere(length, gamma):
    left = torch.arange(length, 0, -1, dtype=torch.float64)
    scores = td_scores(length_to_u(left, gamma=gamma), gamma=gamma)
    assert scores.abs().max() < 1e-12


def test_a_token_that_adds_length_scores_the_discounted_difference():
    # Before the token 10 remain; after it 30 instead of 9: s = gamma (u(30) - u(9)).
    u = length_to_u(torch.tensor([10.0, 30.0, 29.0], dtype=torch.float64), gamma=0.99)
    scores = td_scores(u, gamma=0.99, ended=False)
    expected = 0.99 * (length_to_u(30.0, gamma=0.99) - length_to_u(9.0, gamma=0.99))
    assert scores[0].item() == pytest.approx(expected.item(), abs=1e-12)
    assert scores[0] > 0 and abs(scores[1]) < 1e-12


def test_it_is_minus_the_td_residual_of_the_values():
    torch.manual_seed(0)
    u, gamma = torch.rand(3, 7, dtype=torch.float64), 0.9
    v = -torch.cat([u, torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    residual = -(1 - gamma) + gamma * v[:, 1:] - v[:, :-1]
    torch.testing.assert_close(td_scores(u, gamma=gamma), -residual)


def test_where_the_limit_cut_the_last_score_is_unknown():
    u = torch.tensor([0.5, 0.75])
    scores = td_scores(u, gamma=0.5, ended=False)
    assert scores[0] == 0.375 and scores[1].isnan()


def test_gamma_outside_the_open_interval_is_refused():
    with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\)"):
        td_scores(torch.tensor([0.5]), gamma=1.0)
