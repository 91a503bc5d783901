"""Which piece of a response's text belongs to which token?

Tokens are not characters: a character may be spread over several tokens, and a token alone decodes
to other text (a lost leading space) than the same token after its neighbours. So text is decoded
as it grows, in a window of a few tokens, and each token gets what it added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 4  # bytes of a UTF-8 character: no longer can a character stay unfinished


def token_texts(tokenizer: Any, ids: Sequence[int], *, before: Sequence[int] = ()) -> list[str]:
    """Text that each token adds; joined, they are the text of the response.

    Args:
        tokenizer: has `decode`.
        ids: tokens of the response, special ones included (they show as their names).
        before: tokens in front of them, so that the first one keeps its leading space.
    Returns:
        One string per token. A token that ends inside a character gets "", and the one that
        completes the character gets it whole.
    """
    everything = [*before[-1:], *ids]
    shown = len(everything) - len(ids)
    start, texts = 0, []
    for end in range(shown + 1, len(everything) + 1):
        old = _decode(tokenizer, everything[start:shown])
        new = _decode(tokenizer, everything[start:end])
        waiting = new.endswith(_UNFINISHED) and end < len(everything)
        if waiting and end - shown < _LONGEST:
            texts.append("")
            continue
        texts.append(new[len(old) :])
        start, shown = shown, end
    return texts


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
