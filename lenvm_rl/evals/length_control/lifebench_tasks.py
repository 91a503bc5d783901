"""How does LIFEBench ask for a length, and how does it count what comes?

A task holds the places `{word_count_type}` (equal to, at most, at least) and `{word_count}`. Its
original unit is words (characters in Chinese); asked in tokens, the unit in the sentence changes
as in LenVM's evaluation: "128 words long" -> "128 tokens long", 字数 -> token数 and 128字 -> 128.
Tasks without these places (the shipped policy's, which reads no instructions) stay as they are.

The countdown prompt follows CAPEL (arXiv 2508.13805) in format, not in wording: the response counts
markers <n> ... <1> down, one word (Chinese: one character) after each, and ends with <0>. Markers
are taken out before anything is counted.
"""

from __future__ import annotations

import re
from dataclasses import replace

from lenvm_rl.prompts.prompt import Prompt

UNITS = ("tokens", "words")
WAYS = {
    "en": {"equal": "equal to", "at_most": "at most", "at_least": "at least"},
    "cn": {"equal": "等于", "at_most": "至多有", "at_least": "至少有"},
}
COUNTDOWN = {
    "en": (
        "\n\nWrite the answer as a countdown. For every number k from {target} down to 1, write "
        "the marker <k> and right after it one word; punctuation may stick to the word, blanks "
        "may not be inside it. Markers go down by one: none is skipped, repeated or left without "
        "a word, and none counts as a word. After the word of <1> write <0> and stop there. "
        "The answer begins with <{target}>."
    ),
    "cn": (
        "\n\n请用倒计数的方式书写回答。从{target}到1，每个数字k先写标记<k>，紧接着写一个汉字，"
        "标点可以跟在汉字后面。标记逐一递减，不得跳过、重复或缺少汉字，标记本身不计入字数。"
        "写完<1>后面的汉字，写<0>并立即停止。回答以<{target}>开头。"
    ),
}
_MARKER = re.compile(r"<\d{1,6}>")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_ENGLISH = re.compile(r"\b[a-zA-Z0-9'-]+\b")


def language(prompt: Prompt) -> str:
    """ "en" or "cn": of LIFEBench's field `lang`; English where there is none.

    Raises:
        ValueError: another language.
    """
    lang = str(prompt.extra.get("lang", "en"))
    if lang not in WAYS:
        raise ValueError(
            f"prompt {prompt.prompt_id!r} has lang {lang!r}: LIFEBench knows {', '.join(WAYS)}."
        )
    return lang


def asks_for_length(prompt: Prompt) -> bool:
    """Whether the prompt has a place where the length is asked for."""
    return "{word_count}" in prompt.messages[-1]["content"]


def asking(prompt: Prompt, control: str, target: int, *, unit: str = "tokens") -> Prompt:
    """The prompt with its length asked for in words; itself where it has no place for that.

    Args:
        control: one of `lenvm_rl.core.CONTROLS`.
        target: length in `unit`.
    """
    if not asks_for_length(prompt):
        return prompt
    lang = language(prompt)
    *before, last = prompt.messages
    text = last["content"].replace("{word_count_type}", WAYS[lang][control])
    text = text.replace("{word_count}", str(target))
    if unit == "tokens":
        text = _in_tokens(text, str(target), lang)
    return replace(prompt, messages=[*before, {**last, "content": text}])


def _in_tokens(text: str, target: str, lang: str) -> str:
    if lang == "en":
        return re.sub(rf"\b{target}\s+words?\b", f"{target} tokens", text)
    return re.sub(rf"{target}\s*字", target, text).replace("字数", "token数")


def counting_down(prompt: Prompt, target: int) -> Prompt:
    """The prompt with the countdown's rules after it.

    Args:
        target: words (Chinese: characters) to count down from, at least 1.
    """
    *before, last = prompt.messages
    said = COUNTDOWN[language(prompt)].replace("{target}", str(target))
    return replace(prompt, messages=[*before, {**last, "content": last["content"] + said}])


def without_markers(text: str) -> str:
    """The text of a countdown without its markers."""
    return _MARKER.sub(" ", text)


def count_words(text: str) -> int:
    """LIFEBench's count: Chinese characters plus English words.

    A word is a run of ASCII letters, digits, apostrophes and hyphens between word boundaries. As
    Chinese characters are word characters too, a run that touches one is not counted (`用AI写` is
    2): that is the benchmark's own count.

    Source: LIFEBench, `count_words`, with its two patterns.
    """
    return len(_CHINESE.findall(text)) + len(_ENGLISH.findall(text))
