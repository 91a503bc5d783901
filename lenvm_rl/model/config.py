"""What does a LenVM checkpoint say about itself? Its trunk, its gamma, its target, its policy.

`config.json` is the only place where these facts live, so that nobody has to type gamma twice
and a value model can refuse tokens that it was not trained on.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from lenvm_rl.core import TARGETS, check_gamma
from lenvm_rl.model.heads import HEADS

# Standard names that trainers and engines read from a top-level configuration. A whitelist: a
# blanket delegation would also answer probes such as `hasattr(config, "rope_parameters")`.
_TRUNK_FIELDS = frozenset(
    {
        "hidden_size",
        "vocab_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_hidden_layers",
        "intermediate_size",
        "max_position_embeddings",
        "head_dim",
        "sliding_window",
    }
)
HEAD_OUTPUTS = ("value", "logit")
ANSWERS = ("all", "correct")


class LengthValueConfig(PretrainedConfig):
    """Configuration of a length value model: any transformers trunk plus a value head.

    Args:
        text_config: configuration of the trunk (an object, or its dictionary with `model_type`).
        gamma: per-token discount in (0, 1); None only before training has chosen it.
        target: one of `lenvm_rl.core.TARGETS`; "return" is the paper's V = -sigmoid(z).
        length_scale: tokens that one unit of a (normalised) length target stands for.
        head: "state" (the paper's: a value per state) or "candidate" (a value per state and token,
            read before the token is run), see `heads`.
        head_hidden_size: width of the head's hidden layer; None means the trunk's hidden size.
        frozen_trunk: the trunk is the policy's own and is not trained, so the head can be read off
            the hidden states that the policy computes anyway.
        head_output: what `forward(...).logits` holds: "value" (the prediction, verl's convention
            for critics) or "logit" (the raw z in float32, from which long lengths can be read).
        answers: whose lengths it has learnt, "all" completions or those that a grader called
            "correct": V(s) = E[G | s], or E[G | s, correct].
        policy: {"name", "revision", "tokenizer_sha"} of the policy whose lengths it predicts.
        sampling: the sampling settings of the completions it was trained on.
        training: {"rows", "tokens"} of these completions.
        measured: {"mre_s0", "mre_s0_noise_floor", "step", ...} on completions held out.

    Raises:
        ValueError: for a gamma outside (0, 1), an unknown target or head output, or no trunk.
    """

    model_type = "lenvm"
    sub_configs = {"text_config": AutoConfig}
    has_no_defaults_at_init = True

    text_config: dict | PretrainedConfig | None = None
    gamma: float | None = None
    target: str = "return"
    length_scale: float | None = None
    head: str = "state"
    head_hidden_size: int | None = None
    frozen_trunk: bool = False
    head_output: str = "value"
    answers: str = "all"
    policy: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
    tie_word_embeddings: bool = False  # there is no output embedding to tie
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if isinstance(self.text_config, dict):
            fields = dict(self.text_config)
            if "model_type" not in fields:
                raise ValueError(
                    "text_config has no 'model_type', so the trunk's architecture is unknown: pass "
                    "the trunk's whole configuration, e.g. AutoConfig.from_pretrained(trunk)."
                )
            self.text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        if self.text_config is None:
            raise ValueError(
                "a LenVM configuration needs text_config, the configuration of its trunk; "
                "LengthValueModel.from_policy(path) and `lenvm init` fill it in."
            )
        if self.gamma is not None:
            self.gamma = check_gamma(self.gamma)
        _check_choice("target", self.target, TARGETS)
        _check_choice("head", self.head, HEADS)
        _check_choice("head_output", self.head_output, HEAD_OUTPUTS)
        if self.answers == "correct":  # as version 0.1 wrote it
            self.answers = "correct"
        _check_choice("answers", self.answers, ANSWERS)
        kwargs.setdefault("num_labels", 1)
        super().__post_init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _TRUNK_FIELDS:
            trunk = self.__dict__.get("text_config")
            if isinstance(trunk, PretrainedConfig):
                text = trunk.get_text_config()
                if name == "num_key_value_heads" and not hasattr(text, name):
                    return text.num_attention_heads  # older architectures: one per query head
                if not hasattr(text, name):
                    raise AttributeError(
                        f"the configuration of this LenVM's {text.model_type} trunk has no {name}, "
                        "which trainers and engines read: put the LenVM on a trunk that has it, "
                        "such as Qwen's or Llama's."
                    )
                return getattr(text, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def require_gamma(self) -> float:
        """The stored gamma; ValueError when the model has not been given one yet."""
        if self.gamma is None:
            raise ValueError(
                "this LenVM has no gamma yet (it was initialised, not trained), so its output has "
                "no length. Train it, or pass gamma=... when it is created."
            )
        return self.gamma


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}; got {value!r}.")
