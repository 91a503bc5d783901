"""Does the state of the length term survive a restart, and is a foreign one refused?"""

import dataclasses

import pytest

from lenvm_rl.core import make_controller
from lenvm_rl.verl.rl.group_rewards import GroupReward
from lenvm_rl.verl.rl.length_state import LengthState
from lenvm_rl.verl.rl.policy_metrics import LengthAlarm
from tests.verl.test_length_terms import batch


def fresh(use="objective", reward=None):
    controller = make_controller("dual", target=50.0, step_size=0.5, high=3.0)
    return LengthState(use, controller, LengthAlarm(0.5, 2.0), GroupReward.of(reward))


def test_everything_that_remembers_comes_back(tmp_path):
    reward = {"name": "a_dlp", "reference": 0.9}
    before = fresh(reward=reward)
    before.controller.update({"mean_length": 80.0})
    before.alarm.check(80.0, step=1)
    before.reward.update(batch())
    before.save(tmp_path)
    after = fresh(reward=reward)
    after.load(tmp_path)
    assert after.controller.scale == before.controller.scale == pytest.approx(0.3)
    assert after.alarm.reference == 80.0
    assert after.reward.state_dict() == before.reward.state_dict()
    assert after.alarm.check(30.0, step=2) == -1.0, "measured against the first step of all"


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="was not written by trainer mode 'lenvm'.*resume_mode"):
        fresh().load(tmp_path)


def test_another_use_is_refused(tmp_path):
    fresh().save(tmp_path)
    with pytest.raises(ValueError, match="lenvm.use=objective, this run has shaping"):
        fresh(use="shaping").load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("linear", {"start": 0.0, "end": 1.0, "steps": 5}), ("constant", {"value": 0.3})],
)
def test_another_kind_of_controller_is_refused_both_ways(tmp_path, kind, settings):
    dual, other = fresh(), fresh()
    other = dataclasses.replace(other, controller=make_controller(kind, **settings))
    for before, after in ((dual, other), (other, dual)):
        before.save(tmp_path)
        with pytest.raises(ValueError, match=r"another kind of lenvm.controller.*\['scale'\]"):
            after.load(tmp_path)


def test_another_constant_goes_on(tmp_path):
    states = [
        dataclasses.replace(fresh(), controller=make_controller("constant", value=value))
        for value in (0.3, 0.6)
    ]
    states[0].save(tmp_path)
    states[1].load(tmp_path)
    assert states[1].controller.scale == 0.6
