"""Figures of version 0.1, still the same."""

import json

import pytest

from tests.golden import subjects
from tests.tiny import FORWARD
from tests.verl.test_policy_trainer import KEYS, Queue, composed, step

__all__ = ["composed", "step"]  # fixtures

# Figures of float32 forwards on another processor: a logit's error is multiplied by up to the
# remaining length when it is read as tokens.
FORWARDS = 100 * FORWARD


def test_sampled_token_ids(sampled):
    assert sampled == json.loads(subjects.ROLLOUTS.read_text())


def test_prediction(changed, rollouts, tmp_path):
    assert changed("prediction", subjects.prediction(rollouts, tmp_path), rel=FORWARDS) == {}


def test_prediction_against_monte_carlo(changed, samples_alike, rollouts, tmp_path):
    assert changed("prediction_of_states", subjects.prediction_of_states(rollouts, tmp_path)) == {}


def test_predict(changed):
    assert changed("predict", subjects.predictions(), rel=FORWARDS) == {}


@pytest.mark.parametrize("table", ["control", "lifebench", "tradeoff"])
def test_guided_tables(changed, samples_alike, tmp_path, table):
    assert changed(table, getattr(subjects, table)(tmp_path)) == {}


def test_stream_order(changed, tmp_path):
    assert changed("stream_order", subjects.stream_order(tmp_path)) == {}


def test_advantages_of_the_bench(changed):
    assert changed("bench_advantages", subjects.bench_advantages()) == {}


BLOCKS = {
    "objective": {"use": "objective"},
    "objective_std": {"use": "objective", "normalise": "batch_std", "lam": "auto"},
    "objective_refresh": {"use": "objective", "refresh": True},
    "objective_correct": {"use": "objective", "applies_to": "correct"},
    "objective_correct_values": {"use": "objective", "applies_to": "correct", "answers": "correct"},
    "shaping": {"use": "shaping", "scale": 0.3},
    "budget": {"use": "budget", "budget_column": "budget"},
    "budget_at_most": {"use": "budget", "budget_column": "budget", "budget_kind": "at_most"},
    "length_reward": {
        "use": "none",
        "checkpoint": None,
        "scale": None,
        "length_reward": {"name": "kimi", "weight": 1.0},
    },
}


@pytest.mark.parametrize("estimator", ["grpo", "gae", "rloo"])
def test_advantages_of_one_step(changed, step, estimator):  # noqa: F811 (the fixture)
    """As the trainer computes them: verl's estimator, and the length term on top."""
    found = {}
    for name, block in BLOCKS.items():
        queue = Queue(scores=[1.0, 0.0, 0.5, 1.0])
        queue.columns["budget"] = dict(zip(KEYS, [3, 3, 8, 8, 3], strict=True))
        algorithm = {"adv_estimator": estimator, "gamma": 0.97, "lam": 0.9}
        step(algorithm, queue=queue, **block)
        found[name] = {x: queue.padded(x).tolist() for x in ("advantages", "returns")}
    assert changed(f"step_{estimator}", found) == {}
