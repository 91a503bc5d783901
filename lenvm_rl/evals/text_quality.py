"""Text quality that a number can show: does a response repeat itself, does it end its sentence?

A length that is met says nothing of what was written to meet it. Beside the log-probability under
the policy (`arms.policy_logprobs`) stand two figures that need no model:

    repetition(ids)    1 - (distinct 4-grams) / (all 4-grams): the share that occurred before
    ends_sentence      the last character, closing quotes and brackets aside, ends a sentence

Source: seq-rep-4 of Welleck et al., Neural text generation with unlikelihood training
(arXiv 1908.04319, section 6.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NGRAM = 4
ENDS = ".!?…。！？｡．؟۔।॥"  # noqa: RUF001 - full width ones among them
"""What ends a sentence, in Latin, Chinese and Japanese, Arabic and Indian scripts."""
CLOSES = "\"'`*_)]}>”’»›）】」』》〉］"  # noqa: RUF001
"""What may stand behind that: quotes, brackets, and marks of emphasis."""
_LIST_NUMBER = re.compile(r"(?:^|\n)[ \t*_#>-]*(?:\d{1,3}|[A-Za-z])\.$")


def repetition(token_ids: Sequence[int], n: int = NGRAM) -> float:
    """Share of the n-grams of a response that occurred in it before, in [0, 1).

    Returns:
        1 - (distinct n-grams) / (all n-grams); NaN for fewer than n tokens.
    """
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else float("nan")


def ends_sentence(text: str) -> bool:
    """Whether a text ends with a full sentence: one of `ENDS`, perhaps `CLOSES` behind it.

    A number that opens an item of a list (`2.` at the beginning of a line) ends none: a text may be
    truncated there. Abbreviations (`Dr.`) are not told apart.
    """
    bare = text.rstrip().rstrip(CLOSES).rstrip()
    return bare.endswith(tuple(ENDS)) and not _LIST_NUMBER.search(bare)
