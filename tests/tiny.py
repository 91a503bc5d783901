"""Tiny random language models of several families, and a word tokenizer, made on the spot."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

FAMILIES = ("qwen2", "qwen3", "llama")
VOCAB = 48

# Two float32 forwards of a tiny model that sum in another order (batched against alone, fused
# against plain, other threads or instructions). One rounding is 2**-24 of a number near 1; some
# hundred of them on the way to a logit of size 1 to 4 add up to 2e-6 on the processors seen. A
# wrong mask or a shifted position moves it by more than 1e-3.
FORWARD = 1e-5


def make_tokenizer(words: int = VOCAB, prefix: str = "w") -> PreTrainedTokenizerFast:
    vocab = {"<pad>": 0, "<eos>": 1} | {f"{prefix}{i}": i for i in range(2, words)}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")


def make_policy(family: str, **fields):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "eos_token_id": 1,
            "pad_token_id": 0,
            **fields,
        },
    )
    return AutoModelForCausalLM.from_config(config).eval()
