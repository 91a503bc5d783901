"""Checkpoints of the paper's reference code load and keep their values."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lenvm_rl.model import LengthValueModel, import_published, save_checkpoint
from lenvm_rl.model.published import published
from tests.tiny import FORWARD, make_tokenizer

GAMMA = 0.997
QWEN_7B = ("Qwen/Qwen2.5-7B-Instruct", 0.997)


def write_published(policy_dir, tmp_path, inner=32, where="value_head.safetensors"):
    """A directory as the reference trainer leaves it: base model plus the head's own file."""
    path = tmp_path / "published"
    path.mkdir()
    for file in policy_dir.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    generator = torch.Generator().manual_seed(7)
    head = {
        "v_head.fc.weight": torch.randn(inner, 32, generator=generator) / 6,
        "v_head.fc.bias": torch.randn(inner, generator=generator),
        "v_head.summary.weight": torch.randn(1, inner, generator=generator),
        "v_head.summary.bias": torch.randn(1, generator=generator),
    }
    if where == "model.safetensors":
        head |= load_file(path / where)
    if where.endswith(".bin"):
        torch.save(head, path / where)
    else:
        save_file(head, path / where, metadata={"format": "pt"})
    return path, head


@pytest.mark.parametrize("where", ["value_head.safetensors", "value_head.bin", "model.safetensors"])
def test_import_gives_the_published_values_and_round_trips(policy_dir, tmp_path, where):
    path, head = write_published(policy_dir, tmp_path, where=where)
    model = import_published(path, gamma=GAMMA, policy_name="qwen").eval()
    tokens = torch.arange(2, 14).view(2, 6)
    with torch.no_grad():
        hidden = model.model(tokens).last_hidden_state
        inner = hidden @ head["v_head.fc.weight"].T + head["v_head.fc.bias"]
        inner = inner * torch.sigmoid(inner)
        logit = (inner @ head["v_head.summary.weight"].T + head["v_head.summary.bias"])[..., 0]
        torch.testing.assert_close(
            model.values(tokens), -torch.sigmoid(logit), atol=FORWARD, rtol=0
        )
        stored = save_checkpoint(model, make_tokenizer(), tmp_path / "imported")
        again = LengthValueModel.from_pretrained(stored, gamma=GAMMA)
        torch.testing.assert_close(again.values(tokens), model.values(tokens), atol=FORWARD, rtol=0)
    assert again.config.gamma == GAMMA and again.config.policy["name"] == "qwen"


def test_a_narrower_head_is_recognised(policy_dir, tmp_path):
    path, _ = write_published(policy_dir, tmp_path, inner=8)
    assert import_published(path, gamma=GAMMA).config.head_hidden_size == 8


def test_a_checkpoint_without_or_with_another_head_is_refused(policy_dir, tmp_path):
    with pytest.raises(ValueError, match="no value_head.safetensors.*lenvm init"):
        import_published(policy_dir, gamma=GAMMA)
    path, head = write_published(policy_dir, tmp_path)
    del head["v_head.fc.weight"], head["v_head.fc.bias"]
    save_file(head, path / "value_head.safetensors")
    with pytest.raises(ValueError, match="two-layer head"):
        import_published(path, gamma=GAMMA)


def test_parts_of_the_head_in_several_shards_are_put_together(policy_dir, tmp_path):
    path, head = write_published(policy_dir, tmp_path, where="model.safetensors")
    whole = import_published(path, gamma=GAMMA).eval()
    tensors = sorted(load_file(path / "model.safetensors").items())
    (path / "model.safetensors").unlink()
    shards = {f"model-0000{i + 1}-of-00003.safetensors": dict(tensors[i::3]) for i in range(3)}
    for file, part in shards.items():
        save_file(part, path / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in shards.items() for name in part}
    holders = {file for name, file in weight_map.items() if name in head}
    assert len(holders) > 1, "all of the head lies in one shard: this proves nothing"
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    tokens = torch.arange(2, 14).view(2, 6)
    with torch.no_grad():
        sharded = import_published(path, gamma=GAMMA).eval()
        assert torch.equal(sharded.values(tokens), whole.values(tokens))


@pytest.mark.parametrize(
    ("name", "policy", "gamma"),
    [
        ("lvm-a-qwen2.5-7b-instruct-b-qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-7B-Instruct", 0.997),
        ("lvm-math-0402-a-qwen2.5-7b-instruct-b-qwen2.5-1.5b-instruct",) + QWEN_7B,
        ("lvm-instruct-0327-a-qwen2.5-7b-instruct-b-qwen2.5-1.5b-instruct",) + QWEN_7B,
        (
            "lvm-rel-a-qwen2.5-3b-instruct-b-qwen2.5-3b-instruct",
            "Qwen/Qwen2.5-3B-Instruct",
            0.997,
        ),
        (
            "lvm-a-qwen2.5-vl-7b-instruct-b-qwen2.5-vl-3b-instruct",
            "Qwen/Qwen2.5-VL-7B-Instruct",
            0.997,
        ),
        (
            "lvm-math-0408-a-qwen3-30b-a3b-instruct-b-qwen3-1.7b-base",
            "Qwen/Qwen3-30B-A3B-Instruct-2507",
            None,
        ),
    ],
)
def test_published_names_say_policy_and_gamma(name, policy, gamma):
    for spelled in (name, f"namezz/{name}", f"namezz/{name}@main", f"models/namezz/{name}/"):
        assert published(spelled) == (policy, gamma)
    assert published("namezz/LenVM-Data") is None


def test_a_published_name_fills_policy_and_gamma(policy_dir, tmp_path):
    path, _ = write_published(policy_dir, tmp_path)
    named = path.rename(tmp_path / "lvm-a-qwen2.5-7b-instruct-b-qwen2.5-0.5b-instruct")
    config = import_published(named).config
    assert (config.policy["name"], config.gamma) == QWEN_7B
    assert import_published(named, gamma=0.99).config.gamma == 0.99


def test_a_gamma_that_is_not_known_is_asked_for(policy_dir, tmp_path):
    path, _ = write_published(policy_dir, tmp_path)
    with pytest.raises(ValueError, match="nothing is known of .* --gamma"):
        import_published(path)
    named = path.rename(tmp_path / "lvm-math-0408-a-qwen3-30b-a3b-instruct-b-qwen3-1.7b-base")
    with pytest.raises(ValueError, match="not certain: .* 0.9998, .* 0.999"):
        import_published(named)
    config = import_published(named, gamma=0.9998).config
    assert config.policy["name"] == "Qwen/Qwen3-30B-A3B-Instruct-2507"


def test_a_published_checkpoint_without_its_head_is_not_called_a_language_model(
    policy_dir, tmp_path
):
    path, _ = write_published(policy_dir, tmp_path)
    (path / "value_head.safetensors").unlink()
    named = path.rename(tmp_path / "lvm-a-qwen2.5-7b-instruct-b-qwen2.5-7b-instruct")
    with pytest.raises(ValueError, match="download is not complete"):
        import_published(named)
