"""Tiny random trunks of many architectures, and what works with each.

python -m tests.guidance.trunks      prints the table, found by trying
"""

import torch
from transformers import AutoConfig, AutoModel

from lenvm_rl.model import LengthValueConfig, LengthValueModel

SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
HEAD = {"head_dim": 8}
WINDOW = {"sliding_window": 8}
SHARED = {"shared_expert_intermediate_size": 16}
STATE = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "vocab_size": 48}
MAMBA2 = {"num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MLA = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
JAMBA = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 2,
    "mamba_d_state": 8,
    "use_mamba_kernels": False,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}

# architecture, what differs from SMALL (a dict with "only" replaces it), and what works of
# p packed training, s scoring of candidates, t sampling by transformers. None: no decoder.
TRUNKS = {
    "llama": ("llama", {}, "pst"),
    "llama yarn": (
        "llama",
        {"rope_parameters": {**YARN, "original_max_position_embeddings": 16}},
        "pst",
    ),
    "mistral, window": ("mistral", WINDOW, "ps"),
    "qwen2": ("qwen2", {}, "pst"),
    "qwen2, window": (
        "qwen2",
        {**WINDOW, "use_sliding_window": True, "max_window_layers": 1},
        "ps",
    ),
    "qwen3": ("qwen3", HEAD, "pst"),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, **SHARED}, "pst"),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, **HEAD}, "pst"),
    "mixtral": ("mixtral", LOCAL, "pst"),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}, "pst"),
    "gemma": ("gemma", HEAD, "pst"),
    "gemma2": ("gemma2", {**HEAD, **WINDOW}, "p"),  # soft-capping
    "gemma3_text": ("gemma3_text", {**HEAD, **WINDOW}, "ps"),
    "phi": ("phi", {}, "pst"),
    "phi3": ("phi3", {}, "pst"),
    "gpt2": ("gpt2", GPT, "pst"),
    "gpt_neox": ("gpt_neox", {}, "pst"),
    "gpt_bigcode": ("gpt_bigcode", GPT, "pst"),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}, "p"),
    "codegen": ("codegen", {**GPT, "rotary_dim": 4}, "p"),
    "opt": ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 64}, "pst"),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}, ""),  # ALiBi of its own
    "falcon": ("falcon", {}, ""),
    "mpt": ("mpt", {"only": {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 48}}, ""),
    "stablelm": ("stablelm", {}, "p"),
    "starcoder2": ("starcoder2", {"sliding_window": None}, "pst"),
    "cohere": ("cohere", {}, "pst"),
    "cohere2": ("cohere2", WINDOW, "ps"),
    "olmo2": ("olmo2", {}, "pst"),
    "granite": ("granite", {}, "pst"),
    "granitemoe": ("granitemoe", LOCAL, "pst"),
    "smollm3": ("smollm3", {}, "pst"),
    "nemotron": ("nemotron", {}, "p"),
    "glm4": ("glm4", HEAD, "pst"),
    "deepseek_v3": ("deepseek_v3", MLA, "pst"),
    "gpt_oss": ("gpt_oss", {**LOCAL, **HEAD, **WINDOW}, "p"),  # sinks
    "llama4_text": (
        "llama4_text",
        {**HEAD, "num_local_experts": 2, "intermediate_size_mlp": 64, "attention_chunk_size": 8},
        "p",
    ),
    "exaone4": ("exaone4", {**WINDOW, "sliding_window_pattern": 2}, "ps"),
    "mamba": ("mamba", {"only": STATE}, ""),
    "mamba2": ("mamba2", {"only": {**STATE, **MAMBA2}}, ""),
    "falcon_h1": (
        "falcon_h1",
        {
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
        "",
    ),
    "jamba": ("jamba", JAMBA, ""),
    "bamba": (
        "bamba",
        {
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_expand": 2,
            "attn_layer_indices": [1],
        },
        "",
    ),
    "qwen3_next": ("qwen3_next", {**EXPERTS, **SHARED, **HEAD, **LINEAR}, ""),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64}, ""),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": 64}, ""),
    "bert as decoder": ("bert", {"is_decoder": True}, "pst"),
    "bert": ("bert", {}, None),
    "xlnet": (
        "xlnet",
        {"only": {"d_model": 32, "n_layer": 2, "n_head": 4, "vocab_size": 48}},
        None,
    ),
    "bart": ("bart", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2}, None),
    "t5": ("t5", {"only": {"d_model": 32, "d_kv": 8, "d_ff": 64, "vocab_size": 48}}, None),
}


def make_trunk(name: str):
    """The random trunk, and its configuration's fields."""
    architecture, fields, _ = TRUNKS[name]
    chosen = fields.get("only") or {**SMALL, **fields}
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(architecture, **chosen)).eval()


def make_lenvm(name: str) -> LengthValueModel:
    """A LenVM on it."""
    torch.manual_seed(0)
    return LengthValueModel(LengthValueConfig(text_config=make_trunk(name).config, gamma=0.9))


def main() -> None:
    from lenvm_rl.model.length_value_model import check_decoder
    from lenvm_rl.sampling.works import what_works

    print("| trunk | packed training | scoring | sampling by transformers |\n|---|---|---|---|")
    for name in TRUNKS:
        trunk = make_trunk(name)
        try:
            check_decoder(trunk, name)
        except ValueError as error:
            print(f"| {name} | refused: {error} | | |")
            continue
        found = what_works(make_lenvm(name))
        print(f"| {name} | " + " | ".join("no" if why else "yes" for why in found.values()) + " |")


if __name__ == "__main__":
    main()
