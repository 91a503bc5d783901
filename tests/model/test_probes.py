"""What a trunk reads, against its own states computed row by row."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from lenvm_rl.model.decoder import packs, tokens_read

SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2}
LINEAR = {
    "head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
ATTENTION = {
    "llama": {},
    "gemma": {"head_dim": 8},  # scales its embeddings
    "mistral": {"sliding_window": 4},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "gpt_neox": {},
}
STATEFUL = {
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "qwen3_next": LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64},
}
SINKS = {"gpt_oss": {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}}


def make(family: str, **fields):
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(family, **{**SMALL, **fields}))


@torch.no_grad()
def packed_error(trunk) -> float:
    """Largest difference of a state in a packed row from the same sequence alone."""
    ids = torch.arange(3, 15)[None]
    position = torch.cat([torch.arange(5), torch.arange(7)])[None]
    trunk.eval().set_attn_implementation("eager")
    together = trunk(input_ids=ids, position_ids=position, use_cache=False).last_hidden_state
    alone = [trunk(input_ids=x, use_cache=False).last_hidden_state for x in ids.split([5, 7], 1)]
    return (together - torch.cat(alone, 1)).abs().max().item()


@pytest.mark.parametrize(
    ("family", "fields"), (ATTENTION | STATEFUL | SINKS).items(), ids=lambda x: str(x)[:10]
)
def test_packing_is_right_exactly_where_packed_states_are_those_of_the_rows_alone(family, fields):
    trunk = make(family, **fields)
    assert packs(trunk, "eager") == (packed_error(trunk) < 1e-5)


@pytest.mark.parametrize(
    ("family", "fields"), (ATTENTION | STATEFUL | SINKS).items(), ids=lambda x: str(x)[:10]
)
def test_only_layers_that_carry_a_state_forbid_packing_under_a_right_attention(family, fields):
    assert packs(make(family, **fields)) == (family not in STATEFUL)


def test_half_precision_changes_no_answer():
    assert packs(make("llama").bfloat16())
    assert not packs(make("lfm2", **STATEFUL["lfm2"]).bfloat16())


def test_a_causal_trunk_reads_no_later_token_and_others_read_all():
    xlnet = AutoConfig.for_model("xlnet", vocab_size=48, d_model=32, n_layer=1, n_head=2)
    assert tokens_read(make("llama"), slice(0, 5)).tolist() == [True] * 5 + [False] * 7
    assert tokens_read(make("bert"), slice(0, 5)).all()
    assert tokens_read(AutoModel.from_config(xlnet), slice(0, 5)).all()


def test_a_trunk_is_as_it_was_after_it_was_asked():
    trunk = make("llama").train()
    before = trunk.config._attn_implementation
    packs(trunk)
    assert trunk.training and trunk.config._attn_implementation == before
    assert all(parameter.grad is None for parameter in trunk.parameters())
    assert not trunk.get_input_embeddings()._forward_hooks
