"""Are the errors of the values those of fresh, finished responses, by data source?"""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from lenvm_rl.core import (
    ALONE,
    Rows,
    discounted_returns,
    length_to_logit,
    remaining_length,
    value_to_logit,
)
from lenvm_rl.verl.rl.length_step import Plan, Share, States, take_step
from lenvm_rl.verl.rl.policy_metrics import ValidationDrift, each_sample, figures
from lenvm_rl.verl.rl.step_data import QueueData

GAMMA = 0.9
LENGTHS = [3, 1, 5, 4]
CRITIC = SimpleNamespace(gamma=GAMMA, target="return", length_scale=None, answers="all")


def rollouts(finished=(True, True, True, False), sources=("a", "b", "a", "b")):
    columns = {} if sources is None else {"data_source": list(sources)}
    return SimpleNamespace(finished=torch.tensor(finished), columns=columns)


def report(rollouts, value_off=0.0, tokens_off=0.0):
    """The truth, off by so much, as the workers report it."""
    rows = Rows(torch.tensor(LENGTHS))
    # u is -V: too long by value_off
    states = States(
        rows=rows,
        logits=value_to_logit(discounted_returns(rows, gamma=GAMMA) - value_off),
        ends=torch.zeros(4),
        response=rows,
        written=torch.ones(len(rows), dtype=torch.bool),
    )
    if tokens_off:
        left = remaining_length(rows) + tokens_off
        states = dataclasses.replace(states, logits=length_to_logit(left, gamma=GAMMA))
    share = Share(QueueData("val", []), rollouts.finished, torch.ones(4), torch.arange(4))
    return take_step(Plan(write=False), share, states, CRITIC, meet=ALONE)


def test_a_perfect_critic_has_no_error():
    found = figures(report(rollouts()).errors)
    assert found == pytest.approx({"value_rmse": 0, "value_bias": 0, "mae_tokens": 0}, abs=1e-5)


def test_predicting_too_long_has_a_positive_bias():
    found = figures(report(rollouts(), value_off=0.1).errors)
    assert (found["value_rmse"], found["value_bias"]) == (pytest.approx(0.1), pytest.approx(0.1))
    found = figures(report(rollouts(), tokens_off=2.0).errors)
    assert found["mae_tokens"] == pytest.approx(2.0, abs=1e-4)


def test_cut_responses_do_not_count():
    errors = report(rollouts(), value_off=0.1).errors
    assert errors[:3].any() and not errors[3].any()
    assert figures(report(rollouts(finished=[False] * 4), value_off=0.1).errors) == {}


def test_each_source_has_its_own_figures_over_all_batches():
    seen = ValidationDrift()
    one, two = rollouts(), rollouts(sources=["b"] * 4)
    seen.add(one, report(one, 0.1))  # a: 3 + 5 tokens, b: 1 (its other response was truncated)
    seen.add(two, report(two, 0.05))  # b: 9 tokens
    metrics = seen.metrics()
    assert metrics["val-lenvm/a/value_rmse"] == pytest.approx(0.1)
    assert metrics["val-lenvm/b/value_bias"] == pytest.approx((0.1 + 9 * 0.05) / 10)
    squares = (0.01 + 9 * 0.05**2) / 10
    assert metrics["val-lenvm/b/value_rmse"] == pytest.approx(math.sqrt(squares))
    assert len(metrics) == 6


def test_data_without_sources_is_one_unknown_source():
    seen = ValidationDrift()
    seen.add(rollouts(sources=None), report(rollouts()))
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
