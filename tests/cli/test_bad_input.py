"""Models of which a part is missing, and of another family: every command ends in a sentence."""

import json
import shutil

import pytest

from lenvm_rl.demo.prompts import resolve_policy
from lenvm_rl.model import LengthValueModel, find_lenvm, load_tokenizer, save_checkpoint
from lenvm_rl.model.create import describe_policy
from lenvm_rl.model.hub import check_weights
from lenvm_rl.model.policy import policy_facts
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler
from tests.cli.command_line import invoke, run
from tests.tiny import make_policy, make_tokenizer

POLICY, LENVM = resolve_policy("demo"), find_lenvm("demo")
ASK = ("sample", "--prompts", "demo:2", "-n", 1, "--max-tokens", 4)
GUIDED = (*ASK, "--policy", "demo", "--equal", 3)


def half(folder, file):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])


def silent(folder, *files):
    """Files that say nothing of the end of a response."""
    for name in files:
        known = json.loads((folder / name).read_text())
        kept = {key: value for key, value in known.items() if "eos_token" not in key}
        (folder / name).write_text(json.dumps(kept))


@pytest.fixture
def policy(tmp_path):
    return shutil.copytree(POLICY, tmp_path / "policy")


@pytest.fixture
def lenvm(tmp_path):
    return shutil.copytree(LENVM, tmp_path / "lenvm")


@pytest.mark.parametrize("command", [ASK, ("init",)])
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model.safetensors", r"model.safetensors is damaged .* get the model again"),
        ("config.json", "no tokenizer could be loaded"),
        ("tokenizer.json", "no tokenizer could be loaded"),
    ],
)
def test_half_of_a_policy(policy, tmp_path, command, file, said):
    half(policy, file)
    with pytest.raises(ValueError, match=said):
        invoke(*command, "--policy", policy, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_of_what_says_where_a_response_ends(policy, tmp_path):
    half(policy, "generation_config.json")
    with pytest.raises(ValueError, match=r"generation_config.json is damaged"):
        invoke(*ASK, "--policy", policy, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "command",
    [
        (*GUIDED, "--out", "OUT"),
        ("predict", "--text", "1 + 2"),
        ("eval", "prediction", "--rollouts", "ROLLOUTS", "--out", "OUT"),
    ],
)
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_half_of_a_lenvm(lenvm, tmp_path, command, file):
    places = {"OUT": tmp_path / "out", "ROLLOUTS": tmp_path / "rollouts"}
    if "ROLLOUTS" in command:
        run(*ASK, "--policy", "demo", "--out", places["ROLLOUTS"])
    half(lenvm, file)
    with pytest.raises(ValueError, match=rf"{file} is damaged .* get the model again"):
        invoke(*[places.get(word, word) for word in command], "--lenvm", lenvm)


def test_weights_that_are_not_there(policy, tmp_path):
    (policy / "model.safetensors").rename(policy / "model-00001-of-00002.safetensors")
    check_weights(policy)
    parts = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    (policy / "model.safetensors.index.json").write_text(json.dumps(parts))
    with pytest.raises(ValueError, match=r"lacks model-2.safetensors, which its index names"):
        check_weights(policy)
    (policy / "model.safetensors.index.json").unlink()
    (policy / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no weights"):
        invoke(*ASK, "--policy", policy, "--out", tmp_path / "out")


@pytest.mark.parametrize("name", ["lab/none", "nowhere"])
@pytest.mark.parametrize("command", [ASK, ("init",)])
def test_no_network(name, command, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=rf"no tokenizer could be loaded from {name}: .*\. A LenVM"
    ):
        invoke(*command, "--policy", name, "--out", tmp_path / "out")


def test_another_tokenizers_lenvm(tmp_path):
    tokenizer = make_tokenizer()
    make_policy("llama").save_pretrained(tmp_path / "policy")
    about = describe_policy("tiny", tokenizer)
    model = LengthValueModel.from_policy(tmp_path / "policy", gamma=0.9, policy=about)
    save_checkpoint(model, tokenizer, tmp_path / "lenvm")
    run(*ASK, "--policy", "demo", "--out", tmp_path / "rollouts")
    for command in (
        (*GUIDED, "--out", tmp_path / "out"),
        ("predict", "--rollouts", tmp_path / "rollouts"),
        ("eval", "prediction", "--rollouts", tmp_path / "rollouts", "--out", tmp_path / "eval"),
    ):
        with pytest.raises(ValueError, match="another tokenizer|written with tokenizer"):
            invoke(*command, "--lenvm", tmp_path / "lenvm")


def test_a_policy_whose_tokenizer_alone_names_an_end(policy, tmp_path):
    silent(policy, "config.json", "generation_config.json")
    assert policy_facts(policy, load_tokenizer(policy)).eos_ids == [1]
    assert run(*ASK, "--policy", policy, "--out", tmp_path / "out")["rows"] == 2


@pytest.mark.parametrize(
    "files", [("config.json",), ("config.json", "generation_config.json", "tokenizer_config.json")]
)
def test_an_end_that_no_file_names_is_not_made_up(policy, tmp_path, files):
    """A Llama's class ends at token 2, which is a word of the demo's vocabulary."""
    silent(policy, *files)
    if len(files) == 1:
        (policy / "generation_config.json").unlink()
    with pytest.raises(ValueError, match=r"token 2 \('.*'\), which transformers assumes .*_id"):
        invoke(*ASK, "--policy", policy, "--out", tmp_path / "out")


def test_a_policy_without_a_chat_template(policy, tmp_path):
    (policy / "chat_template.jinja").unlink()
    assert run(*ASK, "--policy", policy, "--out", tmp_path / "out")["rows"] == 2
    prompts = tmp_path / "prompts.jsonl"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2"}]
    prompts.write_text(json.dumps({"prompt": turns}))
    words = [prompts if word == "demo:2" else word for word in ASK]
    ran = invoke(*words, "--policy", policy, "--out", tmp_path / "chat")
    assert ran.exit_code == 1 and "no chat template: give it one, or write" in ran.stderr


def test_little_memory_makes_batches_small_and_none_is_refused(tmp_path, monkeypatch):
    """A request of the demo's longest prompt and 4 tokens takes some hundred KiB of both models."""
    guided = (*GUIDED, "--lenvm", "demo")
    whole = run(*guided, "--out", tmp_path / "whole")
    free = "lenvm_rl.sampling.transformers.engine.available_memory"
    batches = []
    sampler = "lenvm_rl.sampling.transformers.engine.ContinuousSampler.__init__"
    first = ContinuousSampler.__init__

    def watched(self, *args, max_batch, **settings):
        batches.append(max_batch)
        first(self, *args, max_batch=max_batch, **settings)

    monkeypatch.setattr(sampler, watched)
    monkeypatch.setattr(free, lambda device: 3 * 2**20)
    small = run(*guided, "--out", tmp_path / "small")
    assert 1 <= batches[-1] < 128 and small["rows"] == whole["rows"]
    monkeypatch.setattr(free, lambda device: 2**14)
    with pytest.raises(ValueError, match=r"of keys and values, .* shorter responses"):
        invoke(*guided, "--out", tmp_path / "none")
