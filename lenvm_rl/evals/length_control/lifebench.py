"""LIFEBench (arXiv 2505.16234): its sentences, its count, its program's figures, and its table.

Sentences: a task holds the places `{word_count_type}` (equal to, at most, at least) and
`{word_count}`. Its original unit is words (characters in Chinese); asked in tokens, the unit in
the sentence changes as in LenVM's evaluation: "128 words long" -> "128 tokens long", 字数 ->
token数, and 128字 -> 128. Tasks without these places (the demo's, whose policy reads no
instructions) stay as they are.

The countdown prompt follows CAPEL (arXiv 2508.13805) in format, not in wording: the response counts
markers <n> ... <1> down, one word (Chinese: one character) after each, and ends with <0>. Markers
are taken out before anything is counted.

Official figures come with the program's own filter, means and rounding, by two scorers:

    percent    LIFEBench itself: percent in the exponent (`core.lifebench_official_score`)
    fraction   LenVM's fork, which its table 2 is made with (`core.lifebench_score`)

Both leave out generations that are missing or at most one word long, which `length_control` scores
0; take the mean of every target length, round it, and take the mean of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from lenvm_rl.core import lifebench_official_score, lifebench_score
from lenvm_rl.prompts.prompt import Prompt

UNITS = ("tokens", "words")
TARGETS = (32, 64, 128, 256, 512, 1024)
"""Of the paper's table 2, in tokens."""
OFFICIAL_TARGETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""The benchmark's own, in words."""
SCORERS = {"percent": lifebench_official_score, "fraction": lifebench_score}
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


def countdown(prompt: Prompt, target: int) -> str:
    """The countdown's rules in the prompt's language, to stand after it.

    Args:
        target: words (Chinese: characters) to count down from, at least 1.
    """
    return COUNTDOWN[language(prompt)].replace("{target}", str(target))


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


def official_figures(
    lengths: Mapping[int, Sequence[int | None]], *, control: str, scorer: str
) -> dict[str, float]:
    """Score and deviation of one control as the program prints them.

    Args:
        lengths: target -> lengths of its generations in the target's unit, None where none came.
        control: one of `lenvm_rl.core.CONTROLS`.
        scorer: a key of `SCORERS`.
    Returns:
        `score`, mean over targets of means rounded to 0.1, itself rounded to 0.1; `deviation`,
        mean |deviation| in whole percent; NaN where nothing is left. `kept`, the share of
        generations that are not left out.
    Source: LIFEBench, evaluate/evaluate_all_results.py and filters.py at 143e1d6.
    """
    scores, deviations, kept = [], [], 0
    for target, found in lengths.items():
        counted = [length for length in found if length is not None and length > 1]
        kept += len(counted)
        if not counted:
            continue
        length = torch.tensor(counted, dtype=torch.float64)
        asked = torch.full_like(length, target)
        found_scores = SCORERS[scorer](length, asked, control=control).numpy()
        scores.append(round(np.mean(found_scores), 1))  # numpy's mean and rounding, as theirs
        deviations.append(((length - asked) / asked * 100).abs().mean().item())
    total = sum(map(len, lengths.values()))
    if not scores:
        return {"score": float("nan"), "deviation": float("nan"), "kept": 0.0}
    return {
        "score": float(round(np.mean(scores), 1)),
        "deviation": float(round(sum(deviations) / len(deviations))),
        "kept": kept / total,
    }


class Table2Row(NamedTuple):
    """One line of table 2: LIFEBench in tokens, targets 32 to 1,024."""

    model: str
    deviation: float
    """Of Equal To, mean |d| in percent."""
    equal: float
    at_most: float
    at_least: float


TABLE_2 = (
    Table2Row("GPT-4o", 74, 35.5, 77.9, 98.5),
    Table2Row("GPT-5.4", 135, 37.4, 65.4, 98.9),
    Table2Row("GPT-5.4-thinking", 131, 47.8, 72.7, 98.9),
    Table2Row("Claude-Sonnet-4-6", 105, 34.1, 62.9, 100.0),
    Table2Row("Claude-Sonnet-4-6-thinking", 124, 51.3, 69.3, 100.0),
    Table2Row("Claude-Opus-4-6", 66, 35.5, 51.5, 100.0),
    Table2Row("Claude-Opus-4-6-thinking", 87, 53.2, 67.4, 100.0),
    Table2Row("Gemini-3-Flash-Preview", 123, 40.3, 57.3, 99.6),
    Table2Row("Gemini-3.1-Pro-Preview", 91, 49.3, 70.7, 100.0),
    Table2Row("Qwen2.5-3B", 83, 25.6, 92.1, 94.6),
    Table2Row("Qwen2.5-3B + LenVM 1.5B", 56, 62.6, 93.0, 93.1),
    Table2Row("Qwen2.5-7B", 71, 30.9, 98.5, 89.1),
    Table2Row("Qwen2.5-7B + LenVM 1.5B", 44, 64.8, 96.1, 99.5),
    Table2Row("Qwen3-30B-A3B", 90, 36.8, 87.0, 99.3),
    Table2Row("Qwen3-30B-A3B + LenVM 1.7B", 57, 67.2, 99.4, 99.8),
)


def table_2_rows() -> list[dict[str, Any]]:
    """Table 2 as rows of a results table; source is "paper"."""
    return [{"source": "paper", **row._asdict()} for row in TABLE_2]
