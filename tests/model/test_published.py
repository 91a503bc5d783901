"""Checkpoints of the paper's reference code load and keep their values."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lenvm_rl.model import LengthValueModel, import_published, save_checkpoint
from tests.tiny import FORWARD, make_tokenizer

GAMMA = 0.997


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
