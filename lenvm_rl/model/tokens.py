"""Sameness of tokenizers for a value model: every id stands for the same token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer


def tokenizer_sha(tokenizer: Any) -> str:
    """Fingerprint of the map from ids to tokens: 32 hex digits.

    Special roles (which id is EOS or padding) and the chat template are left out on purpose: a
    base model and its instruction-tuned version share their ids and may share a value model.
    """
    pairs = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    text = json.dumps(pairs, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_tokenizer_sha(expected: str | None, got: str | None, *, expected_of: str, got_of: str):
    """ValueError when two fingerprints are known and differ; the names go into the sentence."""
    if expected and got and expected != got:
        raise ValueError(
            f"{got_of} uses another tokenizer (fingerprint {got}) than {expected_of} "
            f"(fingerprint {expected}): the same ids would mean other tokens, and every length "
            "would be wrong. Use the policy's own tokenizer, or sample its completions again."
        )


def check_tokenizer(config: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer whose ids differ from those the LenVM `config` was trained on.

    Raises:
        ValueError: with both fingerprints and what to do.
    """
    expected = (config.policy or {}).get("tokenizer_sha")
    check_tokenizer_sha(
        expected,
        tokenizer_sha(tokenizer),
        expected_of=f"the LenVM for policy {(config.policy or {}).get('name')!r}",
        got_of=f"the tokenizer of {getattr(tokenizer, 'name_or_path', 'the caller')!r}",
    )


_KIN = 0.05  # share of ids that may stand for other tokens, such as special ones


def tokens_of_another_meaning(wanted: Any, own: Any, vocab_size: int) -> int:
    """How many ids stand for another token in `wanted` than in a trunk's `own` tokenizer.

    Families share a vocabulary but for special tokens (DeepSeek's distillations of Qwen): a trunk
    reads them, and learns those few anew.

    Args:
        wanted: the policy's tokenizer.
        own: the one that the trunk was trained with.
        vocab_size: rows of the trunk's embedding.
    Raises:
        ValueError: ids that the trunk has no embedding for, or more than 5 % of another meaning.
    """
    ids = {index: token for token, index in wanted.get_vocab().items()}
    if max(ids) >= vocab_size:
        raise ValueError(
            f"the tokenizer has the id {max(ids)}, the trunk embeds {vocab_size} tokens: take a "
            "trunk of the policy's family, or a fresh one (--tokenizer without --policy)."
        )
    known = {index: token for token, index in own.get_vocab().items()}
    others = sum(known.get(index) != token for index, token in ids.items())
    if others > _KIN * len(ids):
        raise ValueError(
            f"{others} of {len(ids)} ids of the tokenizer stand for other tokens in the trunk's "
            "own: it would read nonsense. Take a trunk of the policy's family, or a fresh one "
            "(--tokenizer without --policy)."
        )
    return others


def token_ids_of(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Ids of tokens that are named by their text or their number, in order.

    Raises:
        ValueError: one that is no token.
    """
    known = tokenizer.get_vocab()
    ids = []
    for token in tokens:
        number = known.get(token, int(token) if token.isdecimal() else None)
        if number is None or number not in known.values():
            raise ValueError(
                f"{token!r} is no token of this tokenizer: name one, e.g. "
                f"{getattr(tokenizer, 'eos_token', None) or '<|im_end|>'!r}, or its id."
            )
        ids.append(number)
    return ids


def load_tokenizer(path: str | Path, *, chat_template_args: dict[str, Any] | None = None) -> Any:
    """The tokenizer of a model directory or hub name, with a sentence where there is none.

    Args:
        chat_template_args: what its chat template gets besides the messages. They travel with the
            tokenizer, so that whoever renders a prompt with it renders it alike; see
            `lenvm_rl.rollouts.text.prompt_ids`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
            # what transformers makes up for a model without tokenizer files
            raise ValueError("it holds special tokens alone")
        tokenizer.chat_template_args = dict(chat_template_args or {})
        return tokenizer
    except (OSError, ValueError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"no tokenizer could be loaded from {path}: {why}. A LenVM and its policy share one; "
            "name a directory that holds tokenizer.json, or the policy's hub name."
        ) from error
