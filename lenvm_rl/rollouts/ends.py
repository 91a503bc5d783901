"""Tokens that end a response, and how many ids there are: the one rule, which all ask.

A response ends at the tokenizer's EOS and at every EOS of the generation configuration: that is
where vLLM stops, and fine-tuned checkpoints often have the two disagree. The model's own
configuration speaks only where both of these are silent. What a single request adds (stop token
ids) or takes away (`ignore_eos`) is the request's: vLLM hands it on as `all_stop_token_ids`.

Text without token ids does not say which of them ended a response (`response_end`): it was the one
with which the chat template ends an assistant's turn (`turn_end_id`: Gemma's tokenizer names <eos>,
its turns end with <end_of_turn>), unless a generation configuration is known that does not stop
there; without a chat template, the tokenizer's EOS.

The rows of a policy's output layer bound what it can sample, and so a rollout file: many policies
are padded beyond their tokenizer (all Qwen2.5), and under RL they do sample ids that stand for no
token. Such rows are kept and counted. `len(tokenizer)` bounds nothing: ids may have holes, and the
largest lies above the count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MARK = "The answer is four."


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
    found = named_ends(tokenizer) | named_ends(generation)
    if not found and config is not None:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        found = named_ends(text)
    if not found:
        raise ValueError(
            "no EOS token is known, so no response could end: neither the tokenizer nor "
            "generation_config.json nor config.json has an eos_token_id. Add it to the policy's "
            "generation_config.json, or pass the ids of the tokens with which the policy ends a "
            "turn."
        )
    return frozenset(found)


def turn_end_id(tokenizer: Any) -> int | None:
    """The token with which the chat template ends an assistant's turn, read off a rendered one.

    It is the first added token after the turn's text with nothing but white space before it; None
    without a template, or where the template writes no such token.
    """
    said = [{"role": "user", "content": "Two plus two?"}, {"role": "assistant", "content": _MARK}]
    _, found, tail = (rendered(tokenizer, said) or "").rpartition(_MARK)
    known = {*getattr(tokenizer, "added_tokens_decoder", ()), *tokenizer.all_special_ids}
    for i in tokenizer(tail, add_special_tokens=False)["input_ids"] if found else ():
        if i in known:
            return int(i)
        if tokenizer.decode([i]).strip():
            return None
    return None


def rendered(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False
) -> str | None:
    """Messages as the chat template's text; None without one, or where it refuses them.

    Args:
        prompt: whether a response is to follow.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    options = {"add_generation_prompt": True} if prompt else {}
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, **options, **getattr(tokenizer, "chat_template_args", {})
        )
    except Exception:  # a template may refuse a conversation in any way it likes
        return None


def response_end(tokenizer: Any, *, chat: bool = True, generation: Any = None) -> int | None:
    """The token to append to a finished response that is known as text; None if nothing names one.

    Args:
        tokenizer: of the policy.
        chat: whether the response is a turn of the chat template.
        generation: the policy's generation configuration, where it is known.
    """
    stops = named_ends(generation)
    turn = turn_end_id(tokenizer) if chat else None
    if turn is not None and (not stops or turn in stops | named_ends(tokenizer)):
        return turn
    own = named_ends(tokenizer) or stops
    return min(own) if own else None


def named_ends(source: Any) -> set[int]:
    """The `eos_token_id` of one source, an object or a mapping: none, one or several."""
    if isinstance(source, Mapping):
        given = source.get("eos_token_id")
    else:
        given = getattr(source, "eos_token_id", None)
    if given is None:
        return set()
    return {int(i) for i in (given if isinstance(given, Iterable) else [given])}


def token_count(tokenizer: Any) -> int:
    """The largest id that stands for a token, plus 1."""
    return max(tokenizer.get_vocab().values()) + 1


def vocabulary_size(tokenizer: Any, config: Any = None) -> int:
    """Ids of a response are below it: `vocab_size` of the policy's configuration, where that is
    known; else the tokenizer's `token_count`."""
    if config is not None:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        if getattr(text, "vocab_size", None):
            return int(text.vocab_size)
    return token_count(tokenizer)
