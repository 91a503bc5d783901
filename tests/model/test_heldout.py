"""Held-out errors of a model whose answer is known: a constant logit."""

import math

import pytest
import torch

from lenvm_rl.model import from_scratch
from lenvm_rl.model.heldout import heldout_errors
from lenvm_rl.rollouts import Rollout
from tests.tiny import make_tokenizer

GAMMA = 0.5


def row(length, *, truncated=False):
    return Rollout(
        prompt_id=f"p{length}",
        sample_id=0,
        prompt_ids=[5, 6],
        response_ids=[9] * length,
        finish_reason="length" if truncated else "stop",
    )


def constant(length):
    """A LenVM that always predicts `length` tokens."""
    model = from_scratch(make_tokenizer(), hidden_size=16, num_layers=1, gamma=GAMMA)
    z = math.log((1 - GAMMA**length) / GAMMA**length)  # sigmoid(z) = 1 - gamma**length
    with torch.no_grad():
        model.score.summary.weight.zero_()
        model.score.summary.bias.fill_(z)
    return model


def test_a_constant_prediction_by_hand():
    found = heldout_errors(constant(2.0), [row(4), row(1), row(7, truncated=True)])
    # Remaining lengths 4, 3, 2, 1 and 1; predicted 2, value -3/4. The cut row is left out.
    assert found["length_error"] == pytest.approx((2 + 1 + 0 + 1 + 1) / 5, abs=1e-5)
    returns = [-(1 - GAMMA**n) for n in (4, 3, 2, 1, 1)]
    assert found["mse"] == pytest.approx(sum((g + 0.75) ** 2 for g in returns) / 5, abs=1e-6)
    mean = sum(returns) / 5
    assert found["mse_constant"] == pytest.approx(sum((g - mean) ** 2 for g in returns) / 5)
    # Positions of the 4-token response: states 0, 0, 1, 2; of the other always 0.
    assert found["relative_error_00"] == pytest.approx((2 / 4 + 1) / 2, abs=1e-5)
    assert found["relative_error_25"] == pytest.approx((2 / 4 + 1) / 2, abs=1e-5)
    assert found["relative_error_50"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-5)
    assert found["relative_error_75"] == pytest.approx((0 / 2 + 1) / 2, abs=1e-5)
    # Horizons at s_0: 15/16 and 1/2; 3/4 is predicted.
    assert found["u_bias_s0"] == pytest.approx(0.75 - (15 / 16 + 1 / 2) / 2, abs=1e-6)


def test_only_cut_completions_are_refused():
    with pytest.raises(ValueError, match="all 1 held-out completions were truncated"):
        heldout_errors(constant(2.0), [row(5, truncated=True)])
