"""Is everything that `auto` stands for decided from the right place, and refused otherwise?"""

import pytest

from lenvm_rl.model import LengthValueConfig
from lenvm_rl.verl.pretrain.facts import RolloutFacts
from lenvm_rl.verl.pretrain.objective import RowLimits, describe, make_loss
from lenvm_rl.verl.pretrain.settings import LengthValueSettings

FACTS = RolloutFacts(
    path="rollouts",
    rows=10,
    finished_rows=10,
    tokens=500,
    longest_prompt=8,
    longest_response=90,
    longest_row=95,
    length_p99=80.0,
    tokenizer_sha="abc",
    policy={},
    sampling={},
)


def stored(**fields):
    return LengthValueConfig(text_config={"model_type": "qwen2"}, **fields)


def loss(settings=None, config=None, facts=FACTS):
    block = LengthValueSettings(train_rollouts="rollouts", **(settings or {}))
    return make_loss(block, config or stored(), facts, model="model")


def test_gamma_comes_from_the_setting_then_the_model_then_the_file():
    assert loss({"gamma": 0.9}).gamma == 0.9
    assert loss(config=stored(gamma=0.95)).gamma == 0.95
    assert loss().gamma == pytest.approx(0.01 ** (1 / 80))
    assert loss({"gamma": 0.95}, stored(gamma=0.95)).gamma == 0.95


def test_another_gamma_than_the_models_is_refused():
    with pytest.raises(ValueError, match=r"lenvm.gamma=0.9, but model has gamma 0.95. Leave"):
        loss({"gamma": 0.9}, stored(gamma=0.95))


def test_nothing_to_take_gamma_from_is_refused():
    with pytest.raises(ValueError, match="nothing to go by.*Set lenvm.gamma"):
        loss(facts=None)


def test_target_and_scale():
    assert loss().target == "return"
    assert loss(config=stored(target="log_length")).target == "log_length"
    assert loss({"target": "length"}, stored(target="log_length")).target == "length"
    assert loss().length_scale == 90.0
    assert loss(config=stored(length_scale=50.0)).length_scale == 50.0
    assert loss({"length_scale": 7}).length_scale == 7.0
    assert loss({"gamma": 0.9}, facts=None).length_scale is None


def test_the_rest_is_handed_on():
    objective = loss({"lam": 0.5, "truncated": "bootstrap"})
    assert (objective.lam, objective.truncated) == (0.5, "bootstrap")
    fields = describe(objective, policy={"name": "p"}, sampling={"temperature": 1.0})
    described = {"gamma", "target", "bins", "length_scale", "policy", "sampling", "answers"}
    assert set(fields) == described | {"segment", "training"}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (RowLimits(micro_batch=94, positions=None), "95 tokens, more than a micro-batch holds"),
        (RowLimits(micro_batch=None, positions=94), "95 tokens, more than the trunk has positions"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(limits, message):
    limits.check(94, "a completion")
    with pytest.raises(ValueError, match=message):
        limits.check(95, "a completion")
