"""The length value model: a transformers trunk, a two-layer SiLU head, no language-model head.

    z = W2 SiLU(W1 h + b1) + b2,   V = -sigmoid(z)          (LenVM, eq. 6-8)

With the target `distribution` the head has K outputs, off which z is read at any gamma
(`core.distribution`). With the candidate head (`heads`), the value at position i is read off the
state before token i and the embedding of token i. Training, files and evaluation are the same for
all.

Deviations from the reference: the trunk is held without its output embedding (the reference
computes and throws away the logits of every token), and gamma, target and policy are stored.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import is_flash_attn_2_available

from lenvm_rl.core import LengthDistribution, predict, predicted_length, value_of_logit
from lenvm_rl.model.config import LengthValueConfig, model_card
from lenvm_rl.model.decoder import FOREIGN, is_causal
from lenvm_rl.model.first_blocks import block_count, first_blocks, load_trunk
from lenvm_rl.model.heads import ValueHead, make_head
from lenvm_rl.model.hub import check_weights, find_lenvm
from lenvm_rl.model.pictures import PictureReader, processor_settings, sees_pictures
from lenvm_rl.model.tokens import check_tokenizer


class LengthValueModelForTokenClassification(PreTrainedModel):
    """A value of the remaining length at every position of a token sequence.

    The value at position i belongs to the state that ends with token i: at the last prompt token
    it is the value of s_0. `forward(...).logits` has shape [B, T, 1] and is float32; what it holds
    is `config.head_output` (the raw outputs of a distribution: [B, T, K]). The class name ends in
    ForTokenClassification because verl's critic workers, checkpoint manager and model merger
    recognise value models by it.
    """

    config_class = LengthValueConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LengthValueConfig):
        super().__init__(config)
        self.model = AutoModel.from_config(config.text_config)
        self.score = make_head(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The head keeps torch's default initialisation, as the reference does; the trunk is a
        # PreTrainedModel and initialises its own modules.
        if isinstance(module, ValueHead):
            for layer in module.linears():
                bound = layer.in_features**-0.5
                nn.init.uniform_(layer.weight, -bound, bound)
                if layer.bias is not None:
                    nn.init.uniform_(layer.bias, -bound, bound)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def length_outputs(self, input_ids: Tensor | None = None, **trunk_kwargs: Any) -> Tensor:
        """What is trained, at every position, float32: [B, T] ids -> z [B, T], or the K outputs
        [B, T, K] of a distribution."""
        trunk_kwargs.setdefault("use_cache", False)
        hidden = self.model(input_ids=input_ids, **trunk_kwargs).last_hidden_state
        if self.config.head == "state":
            return self.score.outputs(hidden)
        embedded = trunk_kwargs.get("inputs_embeds")
        if embedded is None:
            embedded = self.get_input_embeddings()(input_ids)
        places = trunk_kwargs.get("position_ids")
        along = places[0] if places is not None and places.dim() == 3 else places  # m-rope
        return self.score.outputs(hidden, embedded, along)

    @cached_property
    def pictures(self) -> PictureReader | None:
        """How the trunk reads pictures; None: it reads tokens alone.

        Raises:
            ValueError: a trunk that sees them, and no settings of its image processor.
        """
        trunk = self.config.text_config
        return PictureReader(trunk, self.config.processor) if sees_pictures(trunk) else None

    def length_logits(
        self, input_ids: Tensor | None = None, *, gamma: float | None = None, **trunk_kwargs: Any
    ) -> Tensor:
        """Logit z of the remaining length at every position: [B, T] ids -> [B, T] float32.

        Args:
            gamma: of the value that z is the logit of; None is the stored one. A distribution has
                every gamma, other targets have one.
        """
        return self.config.read(self.length_outputs(input_ids, **trunk_kwargs), gamma=gamma)

    def values(
        self, input_ids: Tensor | None = None, *, gamma: float | None = None, **trunk_kwargs: Any
    ) -> Tensor:
        """V in (-1, 0), unitless, [B, T], whatever target the model was trained on (eq. 6).

        Args:
            gamma: as for `length_logits`.
        """
        logit = self.length_logits(input_ids, gamma=gamma, **trunk_kwargs)
        return value_of_logit(logit, gamma=gamma or self.config.require_gamma(), **self._target())

    def predicted_lengths(self, input_ids: Tensor | None = None, **trunk_kwargs: Any) -> Tensor:
        """Remaining length in tokens, EOS included, [B, T]; <= E[l] by Jensen (appendix F)."""
        logit = self.length_logits(input_ids, **trunk_kwargs)
        return predicted_length(logit, gamma=self.config.require_gamma(), **self._target())

    def distribution(
        self, input_ids: Tensor | None = None, **trunk_kwargs: Any
    ) -> LengthDistribution:
        """Mean, quantiles and probabilities of the remaining length, EOS included, [B, T].

        Raises:
            ValueError: a LenVM that predicts one number a state.
        """
        bins = self.config.require_bins()
        return bins.of(self.length_outputs(input_ids, **trunk_kwargs))

    def _target(self) -> dict[str, Any]:
        return {"target": self.config.target, "length_scale": self.config.length_scale}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """See the class: `.logits` is [B, T, 1] float32, the prediction or the raw logit."""
        kwargs.pop("labels", None)
        for name in ("past_key_values", "cache"):  # transformers' name of it until 5.23, and since
            if kwargs.get(name, 0) is None:
                del kwargs[name]
        outputs = self.length_outputs(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=bool(use_cache),
            **kwargs,
        )
        if self.config.head_output == "value":
            outputs = predict(self.config.read(outputs), target=self.config.target)
        wide = outputs.dim() > 2  # [B, T, K] already
        return TokenClassifierOutput(logits=outputs if wide else outputs.unsqueeze(-1))

    @classmethod
    def from_policy(
        cls,
        path: str | Path,
        *,
        gamma: float | None = None,
        target: str = "return",
        bins: Sequence[int] | None = None,
        length_scale: float | None = None,
        head: str = "state",
        head_hidden_size: int | None = None,
        frozen_trunk: bool = False,
        layers: int | None = None,
        text_only: bool = False,
        policy: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> LengthValueModelForTokenClassification:
        """A new LenVM on the trunk of a causal LM; the head is random, seed it with torch.

        The trunk need not be the policy itself (the paper puts a 1.5B trunk beside a 7B policy):
        it must only share the policy's tokenizer. The output embedding is never loaded.

        Args:
            path: directory or hub name of a causal LM.
            gamma: may stay None until training reads it off the rollout file.
            bins: edges of the bins of the target "distribution", `LengthBins.up_to(...).edges`.
            head: "state" or "candidate", see `heads`.
            frozen_trunk: train the head alone, on the policy's own hidden states.
            layers: keep the first so many blocks alone, see `first_blocks`; None keeps all.
            text_only: the policy sees pictures, the LenVM shall not: of a vision-language model
                keep the language model alone.
            policy: {"name", "revision", "tokenizer_sha"} when it is not `path` itself.
            dtype: of the parameters; float32 is what an optimiser should update.

        Raises:
            ValueError: for a gamma outside (0, 1), when `path` is a LenVM already, or no decoder:
                a state that reads later tokens has counted what it should predict; or its first
                `layers` blocks are no model of their own; it sees pictures and has no settings of
                an image processor.
        """
        _check_policy(AutoConfig.from_pretrained(path, **_of_hub(kwargs)), path)
        check_weights(path)
        trunk = load_trunk(path, dtype=dtype, **kwargs)
        check_decoder(trunk, path)
        kept = None
        if layers is not None:
            kept = {"name": str(path), "layers": layers, "of": block_count(trunk.config)}
            trunk = first_blocks(trunk, layers, path, dtype=dtype, **kwargs)
        if text_only:
            trunk = trunk.get_decoder() if sees_pictures(trunk.config) else trunk
        processor = processor_settings(path) if sees_pictures(trunk.config) else None
        config = LengthValueConfig(
            text_config=copy.deepcopy(trunk.config),
            gamma=gamma,
            target=target,
            bins=None if bins is None else list(bins),
            length_scale=length_scale,
            head=head,
            head_hidden_size=head_hidden_size,
            frozen_trunk=frozen_trunk,
            trunk=kept,
            processor=processor,
            ignores_pictures=text_only,
            policy=policy,
            dtype=dtype,
        )
        with torch.device("meta"):
            model = cls(config)
        model.model = trunk
        model.score = model.score.to_empty(device="cpu").to(dtype)
        model._init_weights(model.score)
        return model

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *args: Any,
        gamma: float | None = None,
        tokenizer: Any = None,
        attn_implementation: str | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ):
        """Load a LenVM checkpoint; refuse what would silently give wrong lengths.

        Args:
            path: a directory, hub id or `demo`, see `hub`.
            gamma: when given, must equal the stored gamma.
            tokenizer: when given, must have the vocabulary that the model was trained on.
            attn_implementation: falls back to "sdpa" when flash attention is asked for but not
                installed (verl asks for it whatever the configuration says).

        Raises:
            ValueError: not a LenVM, another gamma, another tokenizer, or no head in the weights.
        """
        hub = _of_hub(kwargs)
        path = find_lenvm(path, **hub)
        kwargs = {key: value for key, value in kwargs.items() if key not in hub}
        check_weights(path)
        config = kwargs.get("config") or AutoConfig.from_pretrained(path)
        _check_gamma_matches(config, gamma, path)
        if tokenizer is not None:
            check_tokenizer(config, tokenizer)
        if attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
            attn_implementation = "sdpa"
        kwargs["config"] = config
        model, info = super().from_pretrained(
            path, *args, attn_implementation=attn_implementation, output_loading_info=True, **kwargs
        )
        missing = sorted(name for name in info["missing_keys"] if name.startswith("score."))
        if missing:
            raise ValueError(
                f"the weights in {path} lack the value head ({', '.join(missing)}): a value model "
                "without its head would predict noise. Save it with save_pretrained, or convert a "
                "published checkpoint with `lenvm import`."
            )
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As in transformers, with a model card. `head_output` is written as "value", the
        convention for readers."""
        asked, self.config.head_output = self.config.head_output, "value"
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config.head_output = asked
        if kwargs.get("is_main_process", True):
            (Path(save_directory) / "README.md").write_text(model_card(self.config))


def _of_hub(given: dict[str, Any]) -> dict[str, Any]:
    """What says which files of the Hub are meant."""
    return {key: given[key] for key in ("revision", "token", "cache_dir") if key in given}


def _check_policy(config: Any, path: Any) -> None:
    """Refuse, before its weights are read, what is no decoder (ValueError)."""
    if isinstance(config, LengthValueConfig):
        raise ValueError(
            f"{path} is a LenVM already: load it with from_pretrained. from_policy starts a "
            "new one from a causal language model."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{path} is an encoder-decoder ({config.model_type}): a LenVM reads prompt and "
            "response as one sequence. Take the trunk of a decoder, e.g. Qwen or Llama."
        )


def check_decoder(trunk: nn.Module, name: Any) -> None:
    """Refuse a trunk that is no causal decoder, found by trying it on a dozen tokens.

    Raises:
        ValueError: its states see later tokens, or it does not read a plain row of tokens.
    """
    kind = trunk.config.model_type
    try:
        causal = is_causal(trunk)
    except FOREIGN as error:
        raise ValueError(
            f"the {kind!r} model {name} does not read a plain row of tokens "
            f"({type(error).__name__}: {error}): take the trunk of a decoder, e.g. Qwen or Llama."
        ) from error
    if not causal:
        raise ValueError(
            f"the {kind!r} model {name} is no decoder: its states see later tokens, so a value of "
            "the remaining length would count what it should predict. Take the trunk of a causal "
            "language model, e.g. Qwen or Llama."
        )


def _check_gamma_matches(config: LengthValueConfig, gamma: float | None, path: Any) -> None:
    if gamma is not None and config.gamma is not None and abs(gamma - config.gamma) > 1e-12:
        raise ValueError(
            f"gamma {gamma} was given, but {path} was trained with gamma {config.gamma}: lengths "
            "read with another gamma are wrong. Leave gamma out; the checkpoint knows it."
        )


LengthValueModel = LengthValueModelForTokenClassification

AutoConfig.register("lenvm", LengthValueConfig, exist_ok=True)
AutoModelForTokenClassification.register(
    LengthValueConfig, LengthValueModelForTokenClassification, exist_ok=True
)
