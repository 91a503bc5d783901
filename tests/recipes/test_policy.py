"""Do the recipes for policies compose, is every value accepted, are the READMEs' overrides too?"""

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from verl.utils.config import omega_conf_to_dataclass

from lenvm_rl.verl.pretrain import settings
from lenvm_rl.verl.rl.length_critic import worker_block
from lenvm_rl.verl.rl.policy_settings import check_against_verl, read_policy_settings

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = {
    "grpo_length": ["demo", "demo-guided", "qwen2.5-1.5b-gsm8k", "qwen2.5-7b-math"],
    "ppo_length": ["demo", "qwen2.5-1.5b-gsm8k"],
    "budget": ["demo", "r1-distill-1.5b-deepscaler"],
}
NAMED = [(folder, name) for folder, names in RECIPES.items() for name in names]


@functools.cache
def composed(folder, name, *overrides):
    """A configuration that is only read."""
    given = ["lenvm.checkpoint=lenvm", *overrides]
    with initialize_config_dir(config_dir=str(ROOT / folder), version_base=None):
        return compose(config_name=name, overrides=given)


@pytest.mark.parametrize("folder", RECIPES)
def test_every_yaml_is_known_here(folder):
    assert sorted(path.stem for path in (ROOT / folder).glob("*.yaml")) == sorted(RECIPES[folder])


@pytest.mark.parametrize(("folder", "name"), NAMED)
def test_the_recipe_composes_and_passes_every_check(folder, name):
    config = composed(folder, name)
    block = read_policy_settings(config)
    check_against_verl(config, block)
    assert config.trainer.v1.trainer_mode == "lenvm"
    assert config.reward.reward_manager.name == "lenvm_length"
    assert block.use == ("budget" if folder == "budget" else "objective")
    estimator = config.algorithm.adv_estimator
    assert estimator == ("gae" if folder == "ppo_length" else "grpo")
    worker = worker_block(config, block)
    limit = config.data.max_prompt_length + config.data.max_response_length
    assert worker.ppo_max_token_len_per_gpu >= limit
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= limit
    assert config.data.train_batch_size % config.actor_rollout_ref.actor.ppo_mini_batch_size == 0


@pytest.mark.parametrize(("folder", "name"), NAMED)
def test_verl_takes_the_actors_settings(folder, name):
    config = composed(folder, name)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert actor.ppo_mini_batch_size == config.actor_rollout_ref.actor.ppo_mini_batch_size
    assert rollout.n == config.actor_rollout_ref.rollout.n


def readme_overrides():
    """(folder, override line) of the tables of the READMEs."""
    for folder in RECIPES:
        table = (ROOT / folder / "README.md").read_text()
        for row in re.findall(r"^\|[^|]+\|(.*(?:lenvm|algorithm)\.\S+=.*)\|$", table, re.M):
            for line in re.findall(r"`([^`]+)`", row):
                yield folder, line


@pytest.mark.parametrize(("folder", "line"), list(readme_overrides()))
def test_override_lines_of_the_readmes_are_accepted(folder, line, monkeypatch):
    monkeypatch.setattr(settings, "wants_cpu", lambda: False)
    name = RECIPES[folder][0]
    words = line.split()
    if folder == "grpo_length" and not any(word.startswith("lenvm.scale=") for word in words):
        words.append("lenvm.scale=0.1")
    config = composed(folder, name, *words)
    check_against_verl(config, read_policy_settings(config))


def test_the_readmes_have_override_lines():
    assert len(list(readme_overrides())) >= 12


@pytest.mark.parametrize("folder", RECIPES)
def test_run_scripts_start_the_trainer_on_their_own_recipes(folder, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [ROOT / folder / "run.sh", "demo", "lenvm.scale=0.5"],
        env={**os.environ, "PYTHON": str(fake)},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = done.stdout.split()
    assert arguments[:2] == ["-m", "verl.trainer.main_ppo"]
    assert arguments[arguments.index("--config-path") + 1] == str(ROOT / folder)
    assert arguments[-1] == "lenvm.scale=0.5"
    missing = subprocess.run([ROOT / folder / "run.sh"], capture_output=True, text=True)
    assert missing.returncode != 0 and "demo.yaml" in missing.stderr
