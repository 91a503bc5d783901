"""What a LenVM checkpoint says of itself: its configuration, and the card that is read from it.

`config.json` is the only place where trunk, gamma, target and policy live, so that nobody has to
type gamma twice and a value model can refuse tokens that it was not trained on. The card (README.md
beside the weights) says what the configuration knows, and nothing that would have to be guessed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from lenvm_rl.core import DISTRIBUTION, TARGETS, LengthBins, bins_of, check_gamma, read_outputs

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
HEADS = ("state", "candidate")
HEAD_OUTPUTS = ("value", "logit")
ANSWERS = ("all", "correct")


class LengthValueConfig(PretrainedConfig):
    """Configuration of a length value model: any transformers trunk plus a value head.

    Args:
        text_config: configuration of the trunk (an object, or its dictionary with `model_type`).
        gamma: per-token discount in (0, 1); None only before training has chosen it.
        target: one of `lenvm_rl.core.TARGETS`; "return" is the paper's V = -sigmoid(z),
            "distribution" a probability of every length, which has all gammas and quantiles in it.
        bins: edges of the bins of lengths (`lenvm_rl.core.LengthBins`), of a distribution alone.
        length_scale: tokens that one unit of a (normalised) length target stands for.
        head: "state" (the paper's: a value per state) or "candidate" (a value per state and token,
            read before the token is run), see `heads`.
        head_hidden_size: width of the head's hidden layer; None means the trunk's hidden size.
        frozen_trunk: the trunk is the policy's own and is not trained, so the head can be read off
            the hidden states that the policy computes anyway.
        trunk: {"name", "layers", "of"} where the trunk is the first `layers` of the `of` blocks
            of a policy, else None.
        head_output: what `forward(...).logits` holds: "value" (the prediction, verl's convention
            for critics) or "logit" (the raw z in float32, from which long lengths can be read).
        answers: whose lengths it has learnt, "all" completions or those that a grader called
            "correct": V(s) = E[G | s], or E[G | s, correct].
        segment: what of a response it counts, see `lenvm_rl.rollouts.segments.described`: the
            thinking, up to the first token of its closing tag, or the answer; None: all of it.
        processor: settings of the image processor of a trunk that sees pictures, see `pictures`.
        ignores_pictures: the policy sees pictures and this trunk, on purpose, reads text alone.
        policy: {"name", "revision", "tokenizer_sha"} of the policy whose lengths it predicts.
        sampling: the sampling settings of the completions it was trained on.
        training: {"rows", "tokens"} of these completions.
        measured: {"mre_s0", "mre_s0_noise_floor", "step", ...} on completions held out.

    Raises:
        ValueError: for a gamma outside (0, 1), an unknown target or head output, bins that are
            missing or not asked for, or no trunk.
    """

    model_type = "lenvm"
    sub_configs = {"text_config": AutoConfig}
    has_no_defaults_at_init = True

    text_config: dict | PretrainedConfig | None = None
    gamma: float | None = None
    target: str = "return"
    bins: list[int] | None = None
    length_scale: float | None = None
    head: str = "state"
    head_hidden_size: int | None = None
    frozen_trunk: bool = False
    trunk: dict[str, Any] | None = None
    head_output: str = "value"
    answers: str = "all"
    segment: dict[str, Any] | None = None
    processor: dict[str, Any] | None = None
    ignores_pictures: bool = False
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
        if self.answers == "right":  # as version 0.1 wrote it
            self.answers = "correct"
        _check_choice("answers", self.answers, ANSWERS)
        if (self.target == DISTRIBUTION) != (self.bins is not None):
            raise ValueError(
                f"target={self.target!r} with bins={self.bins}: a distribution needs bins, other "
                "targets have none. `lenvm init --head-target distribution --longest N` spaces "
                "them, as lenvm_rl.core.LengthBins.up_to(N).edges does."
            )
        if self.bins is not None:
            self.bins = list(LengthBins(tuple(self.bins)).edges)
        kwargs.setdefault("num_labels", 1 if self.bins is None else len(self.bins) - 1)
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

    @property
    def length_bins(self) -> LengthBins | None:
        """What the outputs of the head stand for; None where it has one, the logit z."""
        return bins_of(self.bins)

    def require_bins(self) -> LengthBins:
        """The bins of a distribution; ValueError for a LenVM that predicts one number a state."""
        if self.bins is None:
            raise ValueError(
                f"this LenVM predicts one number per state (target {self.target!r}), which has no "
                "quantiles, no probabilities and no gamma but its own. Train one with "
                "lenvm.target=distribution, or from `lenvm init --head-target distribution`."
            )
        return LengthBins(tuple(self.bins))

    def read(self, outputs: Tensor, *, gamma: float | None = None) -> Tensor:
        """The value logit z [...] of raw head outputs, [...] or [..., K] of a distribution.

        Args:
            gamma: what a distribution is read with; None is the stored one.
        Raises:
            ValueError: no gamma, or another one than stored of a LenVM that knows one alone.
        """
        if self.bins is None:
            if gamma is not None and gamma != self.gamma:
                self.require_bins()
            return outputs
        return read_outputs(outputs, bins=self.length_bins, gamma=gamma or self.require_gamma())


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}; got {value!r}.")


_TARGETS = {
    "return": "the discounted return -(1 - gamma^l) of l tokens to go (LenVM, eq. 6)",
    "length": "the tokens to go",
    "normalized_length": "the tokens to go, in units of `length_scale`",
    "log_length": "the logarithm of the tokens to go",
    "distribution": "the distribution of the tokens to go, in {} bins, the last from {:,} on",
}


def model_card(config: LengthValueConfig) -> str:
    """The text of README.md: front matter of the Hub, facts, and how to read a length."""
    policy = config.policy or {}
    named = policy.get("name") or "an unnamed policy"
    trunk = config.text_config.get_text_config()
    sees = getattr(config.text_config, "vision_config", None) is not None
    facts = {
        "policy": f"{named}, revision {policy['revision']}" if policy.get("revision") else named,
        "answers": "right ones alone, as graded" if config.answers == "correct" else "all",
        "counts": f"the {config.segment['name']} segment" if config.segment else "whole responses",
        "gamma": "not chosen yet: it has not been trained"
        if config.gamma is None
        else f"{config.gamma:.10g} per token",
        "predicts": _TARGETS.get(config.target, config.target).format(
            *([len(config.bins) - 1, config.bins[-2]] if config.bins else [])
        ),
        "length scale": config.length_scale and f"{config.length_scale:g} tokens",
        "counted": "response tokens from here to the end, EOS included, prompt excluded",
        "head": f"{config.head}, on a {trunk.model_type} trunk of width {config.hidden_size}"
        + (" that was not trained" if config.frozen_trunk else ""),
        "pictures": "read"
        if sees
        else "not read, though the policy sees them"
        if config.ignores_pictures
        else None,
        "trunk": config.trunk
        and "the first {layers} of {of} blocks of {name}".format(**config.trunk),
        "sampling": _listed(config.sampling),
        "trained on": _listed(config.training),
        "measured": _listed(config.measured),
        "tokenizer": policy.get("tokenizer_sha") and f"fingerprint `{policy['tokenizer_sha']}`",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    return f"""---
library_name: lenvm-rl
tags: [length-value-model]
---

# Length value model of {named}

At every token of a prompt or response: how many tokens are still to come (Length Value Model,
[arXiv 2604.27039](https://arxiv.org/abs/2604.27039)).

| | |
|---|---|
{rows}

Lengths are right for that policy, sampled that way. A relative error at the prompt (`mre_s0`)
is to be read beside its noise floor, what sampling alone puts into it.

```python
from lenvm_rl.model import LengthValueModel, load_tokenizer

lenvm, tokenizer = LengthValueModel.from_pretrained(NAME), load_tokenizer(NAME)
lenvm.predicted_lengths(tokenizer(text, return_tensors="pt").input_ids)  # tokens to go, [1, T]
```

`lenvm predict --lenvm NAME --text "..."` does the same, `lenvm serve --lenvm NAME` steers by it.
"""


def _listed(facts: dict | None) -> str:
    known = {key: value for key, value in (facts or {}).items() if value is not None}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in known.items()
    )
