"""A model's name: a directory, `demo`, or an id that the Hub's cache holds (no network here)."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from lenvm_rl.demo import lenvm_path
from lenvm_rl.model import (
    LengthValueModel,
    describe_policy,
    find_lenvm,
    find_model,
    save_checkpoint,
)
from lenvm_rl.model.hub import on_every_node
from tests.tiny import make_policy, make_tokenizer

PUBLISHED = "namezz/lvm-a-qwen2.5-7b-instruct-b-qwen2.5-0.5b-instruct"
COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The layout of HF_HUB_CACHE, with two revisions of one LenVM and a plain policy."""
    root = tmp_path_factory.mktemp("hub")
    tokenizer = make_tokenizer()

    def add(name, make, commit, ref):
        folder = root / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
        make(folder / "snapshots" / commit)

    def lenvm(gamma):
        def write(path):
            model = LengthValueModel.from_policy(
                policy_at, gamma=gamma, policy=describe_policy("tiny", tokenizer)
            )
            save_checkpoint(model, tokenizer, path)

        return write

    def policy(path):
        make_policy("qwen2").save_pretrained(path)
        tokenizer.save_pretrained(path)

    add("lab/policy", policy, COMMIT, "main")
    policy_at = root / "models--lab--policy" / "snapshots" / COMMIT
    add("lab/lenvm-tiny", lenvm(0.9), COMMIT, "main")

    def published(path):
        policy(path)
        save_file(
            {
                "v_head.fc.weight": torch.randn(32, 32),
                "v_head.fc.bias": torch.zeros(32),
                "v_head.summary.weight": torch.randn(1, 32),
                "v_head.summary.bias": torch.zeros(1),
            },
            path / "value_head.safetensors",
        )

    add(PUBLISHED, published, COMMIT, "main")
    add("lab/lenvm-tiny", lenvm(0.8), OLDER, "v1")
    return root


def offline(cache, *words):
    """`lenvm` with a Hub whose cache is all there is."""
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "lenvm_rl.cli", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_names_that_need_no_hub(tmp_path):
    assert find_lenvm("demo") == lenvm_path()
    assert find_lenvm(lenvm_path()) == lenvm_path()
    assert on_every_node("demo") == str(lenvm_path())
    assert on_every_node("lab/lenvm-tiny") == "lab/lenvm-tiny"
    with pytest.raises(ValueError, match=r"--head nowhere .* no directory, and no id"):
        find_model("nowhere", option="--head")
    with pytest.raises(ValueError, match="holds no LenVM .* but no config.json"):
        find_lenvm(tmp_path)


def test_a_hub_id_is_its_snapshot_and_a_revision_another(cache):
    assert find_lenvm("lab/lenvm-tiny", cache_dir=cache).name == COMMIT
    assert find_lenvm("lab/lenvm-tiny@v1", cache_dir=cache).name == OLDER
    assert LengthValueModel.from_pretrained("lab/lenvm-tiny", cache_dir=cache).config.gamma == 0.9
    older = LengthValueModel.from_pretrained("lab/lenvm-tiny", cache_dir=cache, revision="v1")
    assert older.config.gamma == 0.8
    assert (
        LengthValueModel.from_pretrained("lab/lenvm-tiny@v1", cache_dir=cache).config.gamma == 0.8
    )


def test_what_is_not_there_or_no_lenvm_is_said_in_a_sentence(cache):
    with pytest.raises(ValueError, match="lab/none is no directory, .*`hf download lab/none`"):
        find_lenvm("lab/none", cache_dir=cache)
    with pytest.raises(ValueError, match="lab/policy holds no LenVM .* but a 'qwen2' model"):
        find_lenvm("lab/policy", cache_dir=cache)


def test_commands_take_hub_ids(cache, tmp_path):
    done = offline(cache, "predict", "--lenvm", "lab/lenvm-tiny", "--text", "w3 w4")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["length"] > 0
    done = offline(cache, "init", "--policy", "lab/policy", "--out", tmp_path / "init")
    assert done.returncode == 0, done.stderr
    assert find_lenvm(tmp_path / "init")
    done = offline(cache, "predict", "--lenvm", "lab/none", "--text", "x")
    assert done.returncode == 2 and "HF_HUB_OFFLINE is set" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_published_checkpoint_is_imported_by_its_name_alone(cache, tmp_path):
    done = offline(cache, "predict", "--lenvm", PUBLISHED, "--text", "x")
    assert done.returncode == 2 and f"lenvm import {PUBLISHED}" in done.stderr, done.stderr
    done = offline(cache, "import", PUBLISHED, "--out", tmp_path / "imported")
    assert done.returncode == 0, done.stderr
    config = LengthValueModel.from_pretrained(tmp_path / "imported").config
    assert (config.gamma, config.policy["name"]) == (0.997, "Qwen/Qwen2.5-7B-Instruct")


def test_vllm_options_and_verl_configurations_take_hub_ids(cache, monkeypatch):
    code = (
        "from lenvm_rl.vllm.options import GuidanceOptions, checkpoint_config\n"
        "options = GuidanceOptions(checkpoint='lab/lenvm-tiny@v1')\n"
        "assert options.for_vllm()['lenvm']['checkpoint'] == 'lab/lenvm-tiny@v1'\n"
        "assert checkpoint_config(options.checkpoint).gamma == 0.8\n"
        "from verl.workers.config.model import HFModelConfig\n"
        "import lenvm_rl.model\n"
        "config = HFModelConfig(path='lab/lenvm-tiny').hf_config\n"
        "assert config.model_type == 'lenvm' and config.gamma == 0.9\n"
        "from transformers import AutoModelForTokenClassification\n"
        "AutoModelForTokenClassification.from_pretrained('lab/lenvm-tiny', config=config)\n"
    )
    pytest.importorskip("verl")
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_values_are_those_of_the_directory(cache):
    tokens = torch.arange(2, 10)[None]
    by_id = LengthValueModel.from_pretrained("lab/lenvm-tiny", cache_dir=cache)
    by_path = LengthValueModel.from_pretrained(find_lenvm("lab/lenvm-tiny", cache_dir=cache))
    with torch.no_grad():
        assert torch.equal(by_id.eval().values(tokens), by_path.eval().values(tokens))
