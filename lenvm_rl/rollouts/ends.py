"""Which tokens end a response? The one rule; engines, converters, guides and trainers ask here.

A response ends at the tokenizer's EOS and at every EOS of the generation configuration: that is
where vLLM stops, and fine-tuned checkpoints often have the two disagree. The model's own
configuration speaks only where both of these are silent. What a single request adds (stop token
ids) or takes away (`ignore_eos`) is the request's: vLLM hands it on as `all_stop_token_ids`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def end_token_ids(
    *, tokenizer: Any = None, generation: Any = None, config: Any = None
) -> frozenset[int]:
    """Token ids that end a response: of the tokenizer, and of the generation configuration.

    Args:
        tokenizer: has `eos_token_id`, an id or None.
        generation: a generation configuration, as an object or a mapping; its `eos_token_id` is an
            id, several, or None.
        config: the model's configuration; asked only when the other two name none.
    Raises:
        ValueError: nothing names an end.
    """
    found = _ids(tokenizer) | _ids(generation)
    if not found and config is not None:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        found = _ids(text)
    if not found:
        raise ValueError(
            "no EOS token is known, so no response could end: neither the tokenizer nor "
            "generation_config.json nor config.json has an eos_token_id. Add it to the policy's "
            "generation_config.json, or pass the ids of the tokens with which the policy ends a "
            "turn."
        )
    return frozenset(found)


def _ids(source: Any) -> set[int]:
    if isinstance(source, Mapping):
        given = source.get("eos_token_id")
    else:
        given = getattr(source, "eos_token_id", None)
    if given is None:
        return set()
    return {int(i) for i in (given if isinstance(given, Iterable) else [given])}
