"""What should someone who finds a LenVM know of it? README.md beside the weights, from its config.

Only what the configuration says: a line that would have to be guessed is left out.
"""

from __future__ import annotations

from lenvm_rl.model.config import LengthValueConfig

_TARGETS = {
    "return": "the discounted return -(1 - gamma^l) of l tokens to go (LenVM, eq. 6)",
    "length": "the tokens to go",
    "normalized_length": "the tokens to go, in units of `length_scale`",
    "log_length": "the logarithm of the tokens to go",
}


def model_card(config: LengthValueConfig) -> str:
    """The text of README.md: front matter of the Hub, facts, and how to read a length."""
    policy = config.policy or {}
    named = policy.get("name") or "an unnamed policy"
    trunk = config.text_config.get_text_config()
    facts = {
        "policy": f"{named}, revision {policy['revision']}" if policy.get("revision") else named,
        "answers": "right ones alone, as graded" if config.answers == "correct" else "all",
        "gamma": "not chosen yet: it has not been trained"
        if config.gamma is None
        else f"{config.gamma:.10g} per token",
        "predicts": _TARGETS.get(config.target, config.target),
        "length scale": config.length_scale and f"{config.length_scale:g} tokens",
        "counted": "response tokens from here to the end, EOS included, prompt excluded",
        "head": f"{config.head}, on a {trunk.model_type} trunk of width {config.hidden_size}"
        + (" that was not trained" if config.frozen_trunk else ""),
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
