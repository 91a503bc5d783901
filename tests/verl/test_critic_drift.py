"""Are the errors of the values those of fresh, finished responses, by data source?"""

import math
from types import SimpleNamespace

import pytest
import torch

from lenvm_rl.core import LengthValues, discounted_returns, remaining_length
from lenvm_rl.verl.rl.policy_metrics import ValidationDrift, drift, each_sample

GAMMA = 0.9
LENGTHS = [3, 1, 5, 4]
MASK = torch.arange(5)[None] < torch.tensor(LENGTHS)[:, None]


def rollouts(finished=(True, True, True, False), sources=("a", "b", "a", "b")):
    columns = {} if sources is None else {"data_source": list(sources)}
    return SimpleNamespace(
        mask=MASK.long(), finished=torch.tensor(finished), rows=LENGTHS, columns=columns
    )


def estimate(value_off=0.0, tokens_off=0.0):
    """The truth, off by so much."""
    return LengthValues(
        values=discounted_returns(MASK, gamma=GAMMA) - value_off,  # u is -V: too long by value_off
        left=remaining_length(MASK) + tokens_off,
        end_value=torch.zeros(4),
        end_left=torch.zeros(4),
    )


def test_a_perfect_critic_has_no_error():
    figures = drift(rollouts(), estimate(), gamma=GAMMA)
    assert figures == pytest.approx({"value_rmse": 0, "value_bias": 0, "mae_tokens": 0}, abs=1e-6)


def test_predicting_too_long_has_a_positive_bias():
    figures = drift(rollouts(), estimate(0.1, 2.0), gamma=GAMMA)
    assert figures == pytest.approx({"value_rmse": 0.1, "value_bias": 0.1, "mae_tokens": 2.0})


def test_cut_responses_do_not_count():
    given = estimate()
    given.values[3] = -1.0
    assert drift(rollouts(), given, gamma=GAMMA)["value_rmse"] == pytest.approx(0, abs=1e-6)
    assert drift(rollouts(finished=[False] * 4), given, gamma=GAMMA) == {}


def test_each_source_has_its_own_figures_over_all_batches():
    seen = ValidationDrift(gamma=GAMMA)
    seen.add(rollouts(), estimate(0.1))  # a: 3 + 5 tokens, b: 1 (its other response was truncated)
    seen.add(rollouts(sources=["b"] * 4), estimate(-0.2, 1.0))  # b: 9 tokens
    metrics = seen.metrics()
    assert metrics["val-lenvm/a/value_rmse"] == pytest.approx(0.1)
    assert metrics["val-lenvm/b/value_bias"] == pytest.approx((0.1 - 9 * 0.2) / 10)
    assert metrics["val-lenvm/b/value_rmse"] == pytest.approx(math.sqrt((0.01 + 9 * 0.04) / 10))
    assert metrics["val-lenvm/b/mae_tokens"] == pytest.approx(0.9)
    assert len(metrics) == 6


def test_data_without_sources_is_one_unknown_source():
    seen = ValidationDrift(gamma=GAMMA)
    seen.add(rollouts(sources=None), estimate())
    assert set(seen.metrics()) == {
        f"val-lenvm/unknown/{name}" for name in ("value_rmse", "value_bias", "mae_tokens")
    }


def test_every_batch_of_the_block_is_seen_and_none_after_it():
    buffer = SimpleNamespace(sample=lambda **given: (given["batch"], {"evicted": 0}))
    seen = []
    with each_sample(buffer, seen.append):
        assert buffer.sample(batch="first") == ("first", {"evicted": 0})
        buffer.sample(batch="second")
    buffer.sample(batch="training")
    assert seen == ["first", "second"]


def test_an_error_in_validation_leaves_the_buffer_as_it_was():
    buffer = SimpleNamespace(sample=lambda **given: ("batch", {}))
    original = buffer.sample
    with pytest.raises(RuntimeError), each_sample(buffer, print):
        raise RuntimeError
    assert buffer.sample is original
