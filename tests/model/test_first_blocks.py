"""A trunk of a policy's first blocks computes what they compute inside it, or is refused."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
)

from lenvm_rl.model import LengthValueModel, describe_policy, save_checkpoint
from lenvm_rl.model.config import model_card
from tests.guidance.trunks import SMALL, TRUNKS, make_trunk
from tests.tiny import FAMILIES, make_policy, make_tokenizer

IDS = torch.arange(3, 15).reshape(2, 6)
MIXED = {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 4}
NOT_ALONE = ("rwkv",)
"""Its decay divides by the number of blocks less one."""


def policy_of(tmp_path, family="llama", layers=4, **fields):
    """A policy whose final norm changes what it is given, saved."""
    policy = make_policy(family, num_hidden_layers=layers, **fields)
    with torch.no_grad():
        policy.model.norm.weight.uniform_(0.5, 2.0)
    policy.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy", policy


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_the_policys_own_at_that_block_then_its_final_norm(family, tmp_path):
    path, policy = policy_of(tmp_path, family)
    model = LengthValueModel.from_policy(path, layers=3, gamma=0.9).eval()
    with torch.no_grad():
        at_block_3 = policy(IDS, output_hidden_states=True).hidden_states[3]
        got = model.model(IDS).last_hidden_state
        assert torch.equal(got, policy.model.norm(at_block_3))
        assert not torch.allclose(got, policy.model(IDS).last_hidden_state, atol=1e-3)
    assert len(model.model.layers) == model.config.num_hidden_layers == 3


@pytest.mark.parametrize("load", [LengthValueModel, AutoModelForTokenClassification])
def test_it_is_saved_and_loaded_also_as_verl_loads_it(load, tmp_path):
    path, _ = policy_of(tmp_path, "qwen2", use_sliding_window=True, **MIXED)
    policy = describe_policy("tiny", make_tokenizer())
    model = LengthValueModel.from_policy(path, layers=3, gamma=0.9, policy=policy).eval()
    save_checkpoint(model, make_tokenizer(), tmp_path / "lenvm")
    again = load.from_pretrained(tmp_path / "lenvm", dtype=torch.float32).eval()
    assert again.config.text_config.layer_types == MIXED["layer_types"][:3]
    assert again.config.trunk == {"name": str(path), "layers": 3, "of": 4}
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert f"| trunk | the first 3 of 4 blocks of {path} |" in model_card(again.config)


def test_other_lists_of_the_configuration_stay(tmp_path):
    path, _ = policy_of(tmp_path, "qwen2", layers=2, eos_token_id=[1, 0])
    config = LengthValueModel.from_policy(path, layers=1).config.text_config
    assert config.eos_token_id == [1, 0] and config.layer_types == ["full_attention"]


@pytest.mark.parametrize("name", [name for name, (_, _, works) in TRUNKS.items() if works])
def test_any_decoder_is_cut_or_refused(name, tmp_path):
    make_trunk(name).save_pretrained(tmp_path)
    if name in NOT_ALONE:
        with pytest.raises(ValueError, match="no model of their own.*leave out --layers"):
            LengthValueModel.from_policy(tmp_path, layers=1)
    else:
        model = LengthValueModel.from_policy(tmp_path, layers=1, gamma=0.9).eval()
        model.save_pretrained(tmp_path / "lenvm")
        again = LengthValueModel.from_pretrained(tmp_path / "lenvm").eval()
        assert torch.equal(again.length_logits(IDS), model.length_logits(IDS))


@pytest.mark.parametrize("layers", [0, 5])
def test_more_blocks_than_there_are_and_none_are_refused(layers, tmp_path):
    path, _ = policy_of(tmp_path)
    with pytest.raises(ValueError, match=f"has 4 blocks, and {layers} were asked for: name 1 to 4"):
        LengthValueModel.from_policy(path, layers=layers)


def test_all_blocks_are_the_whole_policy(tmp_path):
    path, policy = policy_of(tmp_path)
    model = LengthValueModel.from_policy(path, layers=4).eval()
    with torch.no_grad():
        assert torch.equal(model.model(IDS).last_hidden_state, policy.model(IDS).last_hidden_state)


def test_blocks_that_compute_something_else_on_their_own_are_refused(tmp_path, monkeypatch):
    path, _ = policy_of(tmp_path)
    whole = AutoModel.from_pretrained(path)

    def scaled(path, *, config, **kwargs):  # a family whose blocks know how many there are
        cut, info = original(path, config=config, **kwargs)
        cut.layers[0].input_layernorm.weight.data *= 0.5
        return cut, info

    from lenvm_rl.model import first_blocks

    original = AutoModel.from_pretrained
    monkeypatch.setattr(AutoModel, "from_pretrained", scaled)
    with pytest.raises(ValueError, match="they compute something else without the blocks behind"):
        first_blocks.first_blocks(whole, 2, path)


def test_blocks_that_share_the_keys_of_others_are_refused(tmp_path):
    config = AutoConfig.for_model(
        "gemma3n_text",
        **{**SMALL, "num_hidden_layers": 6, "head_dim": 8, "intermediate_size": [64] * 6},
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 3,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=48,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.5] * 3 + [0.0] * 3,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'gemma3n_text' .*no model of their own"):
        LengthValueModel.from_policy(tmp_path, layers=3)
