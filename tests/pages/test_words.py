"""Pieces of text become words as a reader sees them."""

import pytest

from lenvm_rl.pages.token_text import visible, word_label, word_starts


def split(pieces, special=(), ids=None):
    starts = word_starts(pieces, ids or list(range(len(pieces))), special)
    ends = [*starts[1:], len(pieces)]
    return ["".join(pieces[a:b]) for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["the", " answer", " is"], ["the", " answer", " is"]),
        ([" con", "clud", "ing"], [" concluding"]),
        ([" don", "'t", " stop"], [" don't", " stop"]),
        (["1", "2", " 3"], ["12", " 3"]),
        (["x", "2"], ["x", "2"]),  # letters and digits are two words
        ([" wait", ",", " let"], [" wait", ",", " let"]),
        ([" end", "\n\n", "So"], [" end", "\n\n", "So"]),
        (["caf", "", "é", "s"], ["cafés"]),  # a character over two tokens, inside a word
        (["", "", "世", "界"], ["世", "界"]),  # no spaces are written between these
        ([" x", "", "世"], [" x", "世"]),
        (["", ""], [""]),  # a response that was cut inside a character
    ],
)
def test_words_by_hand(pieces, words):
    assert split(pieces) == words


def test_special_tokens_stand_alone():
    assert split(["so", "<eos>", "so"], special={1}) == ["so", "<eos>", "so"]
    assert split(["so", "eos"], special={1}) == ["so", "eos"]


def test_labels():
    assert word_label(" Wait") == word_label("wait") == "wait"
    assert word_label("\n\n") == "⏎⏎" and word_label(" ") == "␣"
    assert visible(" a\tb\n") == "␣a⇥b⏎"
