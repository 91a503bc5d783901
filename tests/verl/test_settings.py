"""Does every setting do what it says, and does what cannot be done say so?"""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from lenvm_rl.verl.pretrain.settings import (
    LengthValueSettings,
    check_verl_settings,
    critic_config,
    read_settings,
)

RECIPES = Path(__file__).parents[2] / "recipes" / "pretrain"


@pytest.fixture
def config(lenvm):
    with initialize_config_dir(config_dir=str(RECIPES), version_base=None):
        return compose(
            config_name="demo",
            overrides=["lenvm.train_rollouts=rollouts", f"critic.model.path={lenvm}"],
        )


def set_keys(config, keys):
    with open_dict(config):
        for key, value in keys.items():
            OmegaConf.update(config, key, value)
    return config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gamma": 0}, r"gamma must be in \(0, 1\), got 0"),
        ({"gamma": 1}, r"gamma must be in \(0, 1\), got 1"),
        ({"gamma": 1.2}, r"gamma must be in \(0, 1\), got 1.2"),
        ({"gamma": float("nan")}, r"gamma must be in \(0, 1\), got nan"),
        ({"gamma": "large"}, "lenvm.gamma must be a number or auto, got 'large'"),
        ({"mode": "online"}, "lenvm.mode must be one of offline, on_policy; got 'online'"),
        (
            {"truncated": "keep"},
            "lenvm.truncated must be one of drop, bootstrap, censored; got 'keep'",
        ),
        ({"target": "tokens"}, "lenvm.target must be one of return, length"),
        ({"lam": 1.5}, r"lenvm.lam must be in \[0, 1\], got 1.5"),
        ({"length_scale": -3}, "lenvm.length_scale must be a positive number"),
        ({"window_rows": 0}, "lenvm.window_rows must be at least 1"),
        ({"boundary_weight": 0.0}, "lenvm.boundary_weight must be a positive number, got 0.0"),
        ({"target": "length", "lam": 0.9}, "no lambda-returns"),
        ({"target": "length", "truncated": "bootstrap"}, "no lambda-returns"),
        ({"train_rollouts": None}, "lenvm.train_rollouts is not set"),
        ({"mode": "on_policy"}, "lenvm.train_rollouts=rollouts is set"),
    ],
)
def test_refused_values_name_key_value_and_remedy(given, message):
    with pytest.raises(ValueError, match=message):
        LengthValueSettings(**{"train_rollouts": "rollouts", **given})


def test_an_unknown_key_is_refused_with_the_known_ones(config):
    set_keys(config, {"lenvm.gama": 0.9})
    with pytest.raises(ValueError, match=r"unknown key.*: gama\. Known: mode, train_rollouts"):
        read_settings(config)


def test_a_configuration_without_the_block_is_refused():
    with pytest.raises(ValueError, match="no `lenvm:` block"):
        read_settings(OmegaConf.create({}))


def test_the_shipped_defaults_are_those_of_the_dataclass():
    file = RECIPES.parents[1] / "lenvm_rl" / "verl" / "config" / "lenvm_pretrain.yaml"
    block = OmegaConf.to_container(OmegaConf.load(file).lenvm)
    block["train_rollouts"] = "rollouts"
    assert LengthValueSettings(**block) == LengthValueSettings(train_rollouts="rollouts")


def test_the_demo_configuration_passes(config):
    assert read_settings(config).train_rollouts == "rollouts"
    check_verl_settings(config)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"critic.strategy": "megatron"}, "critic.strategy=megatron is not supported on a CPU"),
        ({"critic.strategy": "fsdp"}, "critic.strategy=fsdp is not supported on a CPU"),
        (
            {"lenvm.mode": "on_policy", "actor_rollout_ref.rollout.multi_turn.enable": True},
            "lenvm.mode=on_policy .*multi_turn.enable=True.*Use single_turn_agent",
        ),
        ({"critic.ppo_mini_batch_size": 8}, "ppo_mini_batch_size=8 differs from"),
        ({"critic.ppo_epochs": 2}, "passes over the file are trainer.total_epochs"),
        ({"critic.ppo_micro_batch_size": 4}, "Set critic.ppo_micro_batch_size_per_gpu"),
        ({"critic.loss_agg_mode": "seq-mean-token-mean"}, "Use token-mean"),
        ({"critic.loss_scale_factor": 10}, "Use token-mean, unscaled"),
        ({"critic.cliprange_value": 0.2}, "has no clipping"),
        ({"algorithm.gamma": 0.99}, "Set lenvm.gamma and lenvm.lam"),
        ({"critic.grad_clip": 0.5, "critic.optim.clip_grad": 2.0}, "contradict each other"),
        ({"critic.checkpoint.save_contents": ["model", "hf_model"]}, "Remove hf_model"),
        ({"critic.checkpoint.save_contents": ["model"]}, "Keep model, optimizer and extra"),
        ({"trainer.default_hdfs_dir": "hdfs://x"}, "default_local_dir only"),
        ({"critic.model.use_liger": True}, "Set both to false"),
        ({"critic.fsdp.forward_only": True}, "has no optimiser"),
        ({"trainer.rollout_data_dir": "dump"}, "not dumped again"),
        ({"data.truncation": "left"}, "would truncate prompts"),
    ],
)
def test_verl_settings_that_would_be_ignored_are_refused(config, keys, message):
    with pytest.raises(ValueError, match=message):
        check_verl_settings(set_keys(config, keys))


def test_settings_that_verl_ignores_for_critics_take_effect(config):
    keys = {
        "critic.use_dynamic_bsz": False,
        "critic.ppo_micro_batch_size_per_gpu": 3,
        "critic.ppo_max_token_len_per_gpu": 111,
        "critic.forward_max_token_len_per_gpu": 222,
        "critic.forward_micro_batch_size_per_gpu": 5,
        "critic.grad_clip": 0.25,
    }
    critic = critic_config(set_keys(config, keys))
    assert critic.engine.use_dynamic_bsz is False
    assert critic.engine.micro_batch_size_per_gpu == 3
    assert critic.engine.infer_micro_batch_size_per_gpu == 5
    assert critic.engine.max_token_len_per_gpu == 111
    assert critic.engine.infer_max_token_len_per_gpu == 222
    assert critic.optim.clip_grad == 0.25


def test_the_optimisers_own_clipping_wins_over_the_default(config):
    critic = critic_config(set_keys(config, {"critic.optim.clip_grad": 0.5}))
    assert critic.optim.clip_grad == 0.5
