"""Which policy is guided by which LenVM? The shipped one, and a larger pair of random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lenvm_rl.demo import policy_path
from lenvm_rl.model import LengthValueConfig, LengthValueModel

GAMMA = 0.99


class Pair(NamedTuple):
    """A policy and its LenVM, in evaluation mode on one device."""

    policy: PreTrainedModel
    lenvm: LengthValueModel

    @property
    def vocab_size(self) -> int:
        """Tokens of both."""
        return self.policy.config.get_text_config().vocab_size


def shipped() -> Pair:
    """The shipped policy with a LenVM on its trunk; the LenVM's head is random."""
    policy = AutoModelForCausalLM.from_pretrained(policy_path(), dtype=torch.float32)
    return Pair(policy, LengthValueModel.from_policy(policy_path(), gamma=GAMMA))


def random_pair() -> Pair:
    """A policy of 135 M parameters (30 layers of 576) and a LenVM whose trunk has 25 M without
    its embedding (6 layers of 512); random weights."""
    policy = AutoModelForCausalLM.from_config(
        llama(hidden=576, layers=30, heads=9, kv_heads=3, intermediate=1536)
    )
    trunk = llama(hidden=512, layers=6, heads=8, kv_heads=2, intermediate=2304)
    return Pair(policy, LengthValueModel(LengthValueConfig(text_config=trunk, gamma=GAMMA)))


def llama(*, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> Any:
    """A Llama configuration with a vocabulary of 49,152."""
    return AutoConfig.for_model(
        "llama",
        vocab_size=49_152,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )


SHAPES: dict[str, Callable[[], Pair]] = {"demo": shipped, "135m": random_pair}


def make_pair(name: str, *, device: str, dtype: torch.dtype, seed: int) -> Pair:
    """The pair `name` of SHAPES."""
    torch.manual_seed(seed)
    return Pair(*(model.eval().to(device=device, dtype=dtype) for model in SHAPES[name]()))
