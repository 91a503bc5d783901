"""Does every recipe compose, and is every value in it accepted?"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lenvm_rl.verl.pretrain import settings
from lenvm_rl.verl.pretrain.settings import check_verl_settings, read_settings

FOLDER = Path(__file__).parents[2] / "recipes" / "pretrain"
RUNNABLE = [
    "demo",
    "demo-on-policy",
    "qwen2.5-7b-from-1.5b",
    "qwen3-30b-a3b-from-1.7b",
    "smollm2",
]
PARTS = ["paper"]


def composed(name, *overrides):
    with initialize_config_dir(config_dir=str(FOLDER), version_base=None):
        return compose(config_name=name, overrides=list(overrides))


def test_every_yaml_is_known_here():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(RUNNABLE + PARTS)


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_recipe_composes_and_passes_every_check(name):
    config = composed(name)
    if name in ("demo", "smollm2"):
        config.lenvm.train_rollouts = "rollouts"  # given on the command line
    block = read_settings(config)
    check_verl_settings(config)
    assert config.trainer.v1.trainer_mode == "lenvm_pretrain"
    assert block.gamma == "auto" and block.lam == 1.0
    assert block.truncated == ("censored" if name == "smollm2" else "drop")
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert config.critic.ppo_max_token_len_per_gpu >= longest


@pytest.mark.parametrize(
    ("name", "longest"), [("qwen2.5-7b-from-1.5b", 3000), ("qwen3-30b-a3b-from-1.7b", 16000)]
)
def test_the_papers_settings(name, longest):
    config = composed(name)
    optim = config.critic.optim
    assert config.data.train_batch_size == config.critic.ppo_mini_batch_size == 1024
    assert config.data.max_response_length == longest
    assert (config.trainer.total_epochs, optim.lr, optim.lr_warmup_steps) == (2, 2e-5, 50)
    assert optim.lr_scheduler_type == "cosine"
    assert config.critic.fsdp.mixed_precision.param_dtype == "bf16"
    assert config.critic.ppo_max_token_len_per_gpu >= config.data.max_prompt_length + longest


def readme_overrides():
    """The override lines that the README lists for scaling and ablation."""
    text = (FOLDER / "README.md").read_text()
    section = text.split("## Scaling and ablation")[1].split("\n## ")[0]
    return re.findall(r"\| `([a-z]\S+=.*?)` \|", section)


@pytest.mark.parametrize("line", readme_overrides())
def test_override_lines_of_the_readme_are_accepted(line, monkeypatch):
    monkeypatch.setattr(settings, "wants_cpu", lambda: False)  # a recipe for GPUs
    config = composed("qwen2.5-7b-from-1.5b", *line.split())
    read_settings(config)
    check_verl_settings(config)


def test_the_readme_has_override_lines():
    assert len(readme_overrides()) >= 8


def test_run_script_is_short_and_hands_on_its_arguments(tmp_path):
    script = FOLDER / "run.sh"
    assert len(script.read_text().splitlines()) <= 40
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [script, "demo", "lenvm.gamma=0.9"],
        env={**os.environ, "PYTHON": str(fake)},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = done.stdout.split()
    assert arguments[:2] == ["-m", "verl.trainer.main_ppo"]
    assert arguments[arguments.index("--config-name") + 1] == "demo"
    assert arguments[-1] == "lenvm.gamma=0.9"


def test_run_script_without_a_recipe_lists_them():
    done = subprocess.run([FOLDER / "run.sh"], capture_output=True, text=True)
    assert done.returncode != 0 and "demo.yaml" in done.stderr
