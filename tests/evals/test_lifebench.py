"""LIFEBench's sentences, counts and official figures by hand."""

import math

import pytest

from lenvm_rl.evals.length_control.lifebench import (
    asking,
    count_words,
    countdown,
    language,
    official_figures,
    without_markers,
)
from lenvm_rl.prompts.prompt import Prompt


def task(text, lang="en"):
    return Prompt(
        prompt_id=f"{lang}-{text}",
        messages=[{"role": "user", "content": text}],
        extra={"lang": lang, "category": "create"},
    )


ENGLISH = task("Your answer must be {word_count_type} {word_count} words long.")
CHINESE = task("[要求]你的回答字数必须{word_count_type} {word_count}字。", "cn")


def said(prompt):
    return prompt.messages[-1]["content"]


@pytest.mark.parametrize(
    ("control", "english", "chinese"),
    [
        ("equal", "equal to", "等于"),
        ("at_most", "at most", "至多有"),
        ("at_least", "at least", "至少有"),
    ],
)
def test_prompts_ask_in_both_languages_and_units(control, english, chinese):
    assert said(asking(ENGLISH, control, 128)) == f"Your answer must be {english} 128 tokens long."
    assert said(asking(CHINESE, control, 128)) == f"[要求]你的回答token数必须{chinese} 128。"
    words = {"unit": "words"}
    assert (
        said(asking(ENGLISH, control, 16, **words))
        == f"Your answer must be {english} 16 words long."
    )
    assert said(asking(CHINESE, control, 16, **words)) == f"[要求]你的回答字数必须{chinese} 16字。"


def test_only_the_length_changes_its_unit():
    prompt = task("In 5 words: name it. It must be {word_count_type} {word_count} words long.")
    expected = "In 5 words: name it. It must be equal to 32 tokens long."
    assert said(asking(prompt, "equal", 32)) == expected
    plain = task("2 + 2 = ?")
    assert asking(plain, "equal", 32) is plain
    with pytest.raises(ValueError, match="has lang 'fr'"):
        language(task("x", "fr"))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("It's a well-known fact: 42 words!", 6),
        ("  two\n\nwords ", 2),
        ("你好，世界。", 4),
        ("我用 AI 写 3 篇", 6),
        ("用AI写", 2),  # a run that touches a Chinese character is not counted
        ("naïve café", 0),  # nor one that touches another letter
        ("!?…", 0),
    ],
)
def test_words_as_the_benchmark_counts_them(text, count):
    assert count_words(text) == count


def test_the_countdown_prompt_and_its_markers():
    english, chinese = countdown(ENGLISH, 3), countdown(CHINESE, 3)
    for text in (english, chinese):
        assert "<3>" in text and "<1>" in text and "<0>" in text and "{target}" not in text
    assert count_words(without_markers("<3>Cats<2>like, <1>fish.<0>")) == 3
    assert count_words(without_markers("<2>你<1>好。<0>")) == 2
    assert without_markers("a < 3 > b <b>") == "a < 3 > b <b>"


def test_official_figures_by_hand():
    """Target 100: 101 and 99; target 10: 10, one word long, and one that never came."""
    lengths = {100: [101, 99], 10: [10, 1, None]}
    rest = {"kept": 3 / 5, "deviation": 0}  # 0.5 %, to the even whole
    # 100 exp(-2) = 13.53 and 100 exp(-5) = 0.67: 7.1 with the other target's 100 is 53.55, which
    # numpy rounds to 53.6 (Python: 53.5)
    percent = official_figures(lengths, control="equal", scorer="percent")
    assert percent == {"score": 53.6, **rest}
    # 100 exp(-0.02) = 98.02 and 100 exp(-0.05) = 95.12: 96.6
    fraction = official_figures(lengths, control="equal", scorer="fraction")
    assert fraction == {"score": 98.3, **rest}
    nothing = official_figures({10: [None, 1]}, control="equal", scorer="percent")
    assert math.isnan(nothing["score"]) and nothing["kept"] == 0
