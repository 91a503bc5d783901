"""Text of single tokens, and the words that they make.

Tokens are not characters: a character may be spread over several tokens, and a token alone decodes
to other text (a lost leading space) than the same token after its neighbours. So text is decoded
as it grows, in a window of a few tokens, and each token gets what it added.

A word is a longest run of tokens that continue each other: letters after letters, digits after
digits, an apostrophe inside, bytes of one character. Anything else begins a new one: a space, a
sign, a special token. Chinese, Japanese and Korean write no spaces: there every token is a word.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"})
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


def word_starts(
    pieces: Sequence[str], ids: Sequence[int], special: Collection[int] = ()
) -> list[int]:
    """Where words begin: indices into the tokens, ascending, 0 first.

    Args:
        pieces: the text that each token adds (`token_texts`).
        ids: the tokens.
        special: ids that are words of their own.
    """
    starts: list[int] = []
    text = ""  # of the word so far
    for i, piece in enumerate(pieces):
        alone = ids[i] in special or (i > 0 and ids[i - 1] in special)
        completes = i > 0 and not pieces[i - 1]  # a character that began in the token before
        coming = piece or next((later for later in pieces[i:] if later), "")
        if i == 0 or alone or not (completes or _continues(text, coming)):
            starts.append(i)
            text = ""
        text += piece
    return starts


def word_label(text: str) -> str:
    """What a word is counted under: without the space around it, in lower case.

    A word of white space alone keeps it, made visible.
    """
    return text.strip().casefold() or visible(text)


def visible(text: str) -> str:
    """The text with its white space as signs that can be seen."""
    return text.translate(_VISIBLE)


def _continues(text: str, piece: str) -> bool:
    if not text:
        return False
    last, first = text[-1], piece[0]
    if _is_letter(last) and first in "'’" and len(piece) > 1 and _is_letter(piece[1]):
        return True  # don't
    return (_is_letter(last) and _is_letter(first)) or (last.isdigit() and first.isdigit())


def _is_letter(char: str) -> bool:
    return char.isalpha() and not _without_spaces(char)


def _without_spaces(char: str) -> bool:
    """Scripts that put no space between words: kana, CJK ideographs, Hangul syllables, Thai."""
    return (
        "\u3040" <= char <= "\u30ff"
        or "\u3400" <= char <= "\u9fff"
        or "\uac00" <= char <= "\ud7a3"
        or "\u0e00" <= char <= "\u0e7f"
        or char >= "\U00020000"
    )
