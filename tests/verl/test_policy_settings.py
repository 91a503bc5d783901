"""Does every setting of the length term do what it says, and is what makes no sense refused?"""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from lenvm_rl.core import DualAscent
from lenvm_rl.verl.rl.policy_settings import (
    PolicyLengthSettings,
    check_against_verl,
    read_policy_settings,
    shaping_discount,
)

ROOT = Path(__file__).parents[2]
GIVEN = {"checkpoint": "lenvm", "scale": 0.1}


@pytest.fixture(scope="module")
def composed():
    folder = str(ROOT / "recipes" / "grpo_length")
    with initialize_config_dir(config_dir=folder, version_base=None):
        return compose(config_name="demo", overrides=["lenvm.checkpoint=lenvm"])


@pytest.fixture
def config(composed):
    return composed.copy()


def set_keys(config, keys):
    with open_dict(config):
        for key, value in keys.items():
            OmegaConf.update(config, key, value)
    return config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"use": "penalty"}, "lenvm.use must be one of none, objective, shaping, budget"),
        ({"scale": float("nan")}, "lenvm.scale must be a finite number, got nan"),
        ({"scale": "large"}, "lenvm.scale must be a finite number, got 'large'"),
        ({"scale": None}, "give exactly one of them"),
        ({"controller": {"kind": "constant", "value": 1}}, "give exactly one of them"),
        ({"scale": None, "controller": {"target": 9}}, "has no kind: constant, linear"),
        ({"scale": None, "controller": {"kind": "pid"}}, "unknown controller 'pid'"),
        ({"gamma": 1.0}, r"gamma must be in \(0, 1\), got 1"),
        ({"gamma": "checkpoint"}, "lenvm.gamma must be a number or auto"),
        ({"gamma_shape": 1.5}, r"gamma must be in \(0, 1\), got 1.5"),
        ({"lam": 1.1}, r"lenvm.lam must be in \[0, 1\] or auto, got 1.1"),
        ({"lam": "long"}, "lenvm.lam must be a number or auto, got 'long'"),
        ({"baseline": "mean"}, "lenvm.baseline must be one of auto, correct, group, all"),
        ({"baseline": "correct"}, "lenvm.baseline=correct with lenvm.applies_to=all"),
        ({"clamp": 1.5}, r"lenvm.clamp must be in \[0, 1\] or null, got 1.5"),
        ({"recalibrate": "yes"}, "lenvm.recalibrate must be true, false or auto"),
        ({"recalibrate": True, "use": "shaping"}, "a potential that moves is no longer one"),
        ({"normalise": "whiten"}, "lenvm.normalise must be one of none, batch_std"),
        ({"applies_to": "some"}, "lenvm.applies_to must be one of all, correct; got 'some'"),
        ({"applies_to": "correct", "use": "shaping"}, "a potential in some completions alone"),
        ({"checkpoint": None}, "lenvm.checkpoint is not set.*lenvm.use=none"),
        ({"checkpoint": None, "use": "none", "scale": None, "refresh": True}, "is not set"),
        ({"use": "shaping", "refresh": True}, "a potential that moves is no longer one"),
        ({"use": "none"}, "have no effect with lenvm.use=none"),
        ({"use": "budget"}, "lenvm.budget_column=None: use=budget reads"),
        ({"budget_column": "budget"}, "Set both or neither"),
        ({"budget_kind": "about"}, "lenvm.budget_kind must be one of equal, at_most"),
        ({"truncated": "keep"}, "lenvm.truncated must be one of drop, bootstrap, censored"),
        ({"alarm_low": 1.5}, "one below and one above 1"),
        ({"length_reward": {"weight": 1}}, "has no name"),
    ],
)
def test_refused_values_name_key_value_and_remedy(given, message):
    with pytest.raises(ValueError, match=message):
        PolicyLengthSettings(**{**GIVEN, **given})


def test_an_unknown_key_is_refused_with_the_known_ones(config):
    set_keys(config, {"lenvm.scal": 0.9})
    with pytest.raises(ValueError, match=r"unknown key.*: scal\. Known: use, .*checkpoint, scale"):
        read_policy_settings(config)


def test_a_key_that_has_a_new_name_is_refused_with_it(config):
    set_keys(config, {"lenvm.cut": "drop"})
    with pytest.raises(ValueError, match="lenvm.cut is called lenvm.truncated now"):
        read_policy_settings(config)


def test_a_configuration_without_the_block_is_refused():
    with pytest.raises(ValueError, match="compose it from lenvm_ppo"):
        read_policy_settings(OmegaConf.create({}))


def test_the_shipped_defaults_are_those_of_the_dataclass():
    file = ROOT / "lenvm_rl" / "verl" / "config" / "lenvm_ppo.yaml"
    block = OmegaConf.to_container(OmegaConf.load(file).lenvm)
    assert PolicyLengthSettings(**{**block, **GIVEN}) == PolicyLengthSettings(**GIVEN)


def test_a_controller_from_the_command_line(config):
    set_keys(config, {"lenvm.scale": None})
    block = {"kind": "dual", "target": 60, "step_size": 0.05, "accuracy_floor": 0.8}
    set_keys(config, {"lenvm.controller": block})
    controller = read_policy_settings(config).make_controller()
    assert isinstance(controller, DualAscent)
    assert (controller.target, controller.accuracy_floor) == (60.0, 0.8)


@pytest.mark.parametrize(
    ("given", "answers", "baseline"),
    [
        ({}, "all", "all"),
        ({"applies_to": "correct"}, "correct", "correct"),
        ({"applies_to": "correct"}, "all", "group"),
        ({"applies_to": "correct", "baseline": "group"}, "correct", "group"),
        ({"applies_to": "correct", "baseline": "all"}, "all", "all"),
        ({"use": "shaping"}, "correct", "all"),
    ],
)
def test_the_baseline_is_one_that_the_lenvm_can_give(given, answers, baseline):
    assert PolicyLengthSettings(**GIVEN, **given).baseline_for(answers) == baseline


@pytest.mark.parametrize(
    ("given", "answers", "message"),
    [
        (
            {"applies_to": "correct", "baseline": "correct"},
            "all",
            "trained on all answers.*lenvm grade",
        ),
        ({}, "correct", "trained on correct answers alone.*Set lenvm.applies_to=correct"),
        (
            {"applies_to": "correct", "baseline": "all"},
            "correct",
            "trained on correct answers alone",
        ),
    ],
)
def test_a_baseline_that_the_lenvm_cannot_give_is_refused(given, answers, message):
    with pytest.raises(ValueError, match=message):
        PolicyLengthSettings(**GIVEN, **given).baseline_for(answers)


@pytest.mark.parametrize(
    ("given", "refits"),
    [
        ({}, True),
        ({"use": "budget", "budget_column": "n"}, True),
        ({"use": "shaping"}, False),
        ({"refresh": True}, False),
        ({"refresh": True, "recalibrate": True}, True),
        ({"recalibrate": False}, False),
    ],
)
def test_a_frozen_critic_in_the_advantage_is_refitted(given, refits):
    assert PolicyLengthSettings(**GIVEN, **given).recalibrates is refits


def test_without_a_critic_lengths_are_only_logged():
    settings = PolicyLengthSettings(use="none")
    assert settings.make_controller().scale == 0.0
    PolicyLengthSettings(use="none", checkpoint="lenvm")  # values are logged


def shaping(**given):
    return PolicyLengthSettings(**{**GIVEN, "use": "shaping", **given})


def test_shaping_under_grpo_below_gamma_1_is_refused_with_the_trap(config):
    with pytest.raises(ValueError, match=r"even a perfect value pays for length.*\+6\.0"):
        check_against_verl(config, shaping(gamma_shape=0.997))
    check_against_verl(config, shaping(gamma_shape=1.0))
    assert shaping_discount(shaping(), config.algorithm) == 1.0


@pytest.mark.parametrize("estimator", ["gae", "reinforce_plus_plus"])
def test_shaping_takes_the_discount_of_estimators_that_have_one(config, estimator):
    set_keys(config, {"algorithm.adv_estimator": estimator, "algorithm.gamma": 0.99})
    assert shaping_discount(shaping(), config.algorithm) == 0.99
    assert shaping_discount(shaping(gamma_shape=0.99), config.algorithm) == 0.99
    with pytest.raises(ValueError, match="discounted with the same gamma"):
        check_against_verl(config, shaping(gamma_shape=0.997))


def test_checkpoints_in_the_background_are_refused(config):
    set_keys(config, {"actor_rollout_ref.actor.checkpoint.async_save": True})
    with pytest.raises(ValueError, match="async_save=true.*Set it to false"):
        check_against_verl(config, read_policy_settings(config))


@pytest.mark.parametrize(
    ("keys", "given", "message"),
    [
        (
            {"actor_rollout_ref.rollout.multi_turn.enable": True},
            {"refresh": True},
            "refresh=true.*multi_turn.enable=True.*refresh=false",
        ),
        (
            {"actor_rollout_ref.rollout.agent.default_agent_loop": "tool_agent"},
            {"refresh": True},
            "refresh=true.*default_agent_loop=tool_agent",
        ),
        (
            {"algorithm.filter_groups.enable": True},
            {
                "scale": None,
                "controller": {"kind": "dual", "target": 60, "steps": 20, "accuracy_floor": 0.7},
            },
            "accuracy_floor=0.7 with algorithm.filter_groups.enable=true: .* Drop",
        ),
    ],
)
def test_settings_of_verl_that_would_break_the_term_are_refused(config, keys, given, message):
    check_against_verl(config, PolicyLengthSettings(**{**GIVEN, **given}))
    set_keys(config, keys)
    with pytest.raises(ValueError, match=message):
        check_against_verl(config, PolicyLengthSettings(**{**GIVEN, **given}))
    check_against_verl(config, PolicyLengthSettings(**GIVEN))


def test_a_lenvm_is_no_task_critic(config, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "lenvm"}')
    set_keys(config, {"critic.model.path": str(tmp_path)})
    check_against_verl(config, PolicyLengthSettings(**GIVEN))  # GRPO has no task critic
    set_keys(config, {"algorithm.adv_estimator": "gae"})
    with pytest.raises(ValueError, match=r"critic.model.path=.* is a LenVM, .*lenvm.checkpoint"):
        check_against_verl(config, PolicyLengthSettings(**GIVEN))


def test_an_aggregation_that_divides_by_the_length_is_warned_of(config, caplog):
    check_against_verl(config, PolicyLengthSettings(**GIVEN))
    assert not caplog.records
    set_keys(config, {"actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean"})
    check_against_verl(config, PolicyLengthSettings(checkpoint="lenvm", use="none"))
    assert not caplog.records
    check_against_verl(config, PolicyLengthSettings(**GIVEN))
    assert "loss_agg_mode=seq-mean-token-mean divides" in caplog.text
