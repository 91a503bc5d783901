"""Which tokens are one word, and how does a token look when it is alone on a page?

A word is a longest run of tokens that continue each other: letters after letters, digits after
digits, an apostrophe inside, bytes of one character. Anything else begins a new one: a space, a
sign, a special token. Chinese, Japanese and Korean write no spaces: there every token is a word.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"})


def word_starts(
    pieces: Sequence[str], ids: Sequence[int], special: Collection[int] = ()
) -> list[int]:
    """Where words begin: indices into the tokens, ascending, 0 first.

    Args:
        pieces: the text that each token adds (`view_tokens.token_texts`).
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
