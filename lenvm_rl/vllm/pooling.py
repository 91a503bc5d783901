"""The LenVM as a vLLM pooling model: the raw logit z at every token of a text.

    LLM(lenvm_dir, runner="pooling").encode(prompts, pooling_task="token_classify")
    vllm serve lenvm_dir --runner pooling            POST /pooling

returns z, `[tokens, 1]` float32, or the K outputs of a distribution, `[tokens, K]`. Not the value:
a value near -1 rounds long lengths away, which `lenvm_rl.vllm.values` reads off z without loss. The
trunk is whatever class vLLM has for the architecture of the checkpoint's `text_config`, with vLLM's
own kernels, parallelism and loaders; the head stays in float32 under any dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.pooler.activations import PoolerIdentity
from vllm.model_executor.layers.pooler.tokwise import pooler_for_token_classify
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsPP
from vllm.model_executor.models.interfaces_base import default_pooling_type
from vllm.model_executor.models.utils import (
    StageMissingLayer,
    init_vllm_registered_model,
    maybe_prefix,
    no_init_weights,
)

from lenvm_rl.model import LengthValueConfig
from lenvm_rl.model.heads import make_head

_HEAD = "score."


@default_pooling_type(tok_pooling_type="ALL")
class LengthValuePoolingModel(nn.Module, SupportsLoRA, SupportsPP):
    """Trunk and value head; `forward` returns z of every token, `[T, 1]` float32, or the K outputs
    of a distribution, `[T, K]`.

    Raises:
        ValueError: a checkpoint with the candidate head, or a trunk that vLLM does not know.
    """

    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        _check_head(config)
        trunk_config = config.get_text_config()
        # A causal model without its output layer: that class has the trunk's weight loading.
        with no_init_weights(
            self,
            lambda module: StageMissingLayer("output", module),
            targets=(LogitsProcessor, ParallelLMHead),
        ):
            self.trunk = init_vllm_registered_model(
                vllm_config,
                prefix=maybe_prefix(prefix, "trunk"),
                hf_config=trunk_config,
                architectures=[causal_architecture(trunk_config)],
            )
        self.score = make_head(config).float()
        self.make_empty_intermediate_tensors = self.trunk.make_empty_intermediate_tensors
        self.pooler = pooler_for_token_classify(
            vllm_config.model_config.pooler_config, act_fn=PoolerIdentity()
        )

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Token embeddings of the trunk."""
        return self.trunk.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Any:
        """Raw outputs `[T, 1 or K]` of T packed tokens (between pipeline stages: hidden states)."""
        hidden = self.trunk(input_ids, positions, intermediate_tensors, inputs_embeds)
        if not isinstance(hidden, Tensor):
            return hidden
        outputs = self.score.outputs(hidden)
        return outputs if self.score.width else outputs.unsqueeze(-1)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a LenVM checkpoint: `model.*` into the trunk, `score.*` into the head."""
        head: dict[str, Tensor] = {}

        def trunk_weights() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name.startswith(_HEAD):
                    head[name.removeprefix(_HEAD)] = tensor.float()
                else:
                    yield name, tensor

        loaded = {f"trunk.{name}" for name in self.trunk.load_weights(trunk_weights())}
        with torch.no_grad():
            self.score.load_state_dict(head)
        return loaded | {_HEAD + name for name in head}


def causal_architecture(trunk_config: Any) -> str:
    """Name of the causal language model on this trunk, e.g. "Qwen2ForCausalLM"."""
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(trunk_config.model_type)
    if name is None:
        raise ValueError(
            f"the LenVM's trunk has model_type {trunk_config.model_type!r}, for which transformers "
            "has no causal language model, so vLLM cannot serve it: predict with "
            "`lenvm predict --engine transformers`."
        )
    return name


def _check_head(config: LengthValueConfig) -> None:
    if config.head != "state":
        raise ValueError(
            f"this LenVM has the {config.head!r} head, which values a token before it is run; the "
            "pooling model serves values of states. Predict with `lenvm predict --engine "
            "transformers`, or serve a LenVM with head 'state'."
        )
