"""LIFEBench on a toy sampler: what is asked, what is counted, scores by hand, failures, tables."""

import io
import math

import pytest
from rich.console import Console

from lenvm_rl.core import CONTROLS
from lenvm_rl.evals.length_control.lifebench import evaluate_lifebench
from lenvm_rl.evals.length_control.lifebench_official import official_figures
from lenvm_rl.evals.length_control.lifebench_settings import LifebenchSettings
from lenvm_rl.evals.length_control.lifebench_tasks import (
    asking,
    count_words,
    counting_down,
    language,
    without_markers,
)
from lenvm_rl.evals.length_control.lifebench_view import lifebench_view
from lenvm_rl.evals.length_control.paper_control import TABLE_2
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.transformers.sampler import Completion
from tests.evals.toy_sampler import PROMPTS, completion
from tests.tiny import make_policy, make_tokenizer


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
    english, chinese = said(counting_down(ENGLISH, 3)), said(counting_down(CHINESE, 3))
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


class Sampler:
    """Unguided: 10 tokens. Guided: the target. Remembers what it was asked."""

    def __init__(self, answer=None):
        self.guides, self.answer = [], answer

    def __call__(self, requests, settings):
        self.guides += [(guide.mode, guide.target) for guide in settings if guide is not None]
        if self.answer is not None:
            return [self.answer for _ in requests]
        return [completion(10 if guide is None else guide.target) for guide in settings]


def evaluate(sampler, prompts=PROMPTS, **fields):
    settings = LifebenchSettings(**{"methods": ("unguided", "guided", "truncated"), **fields})
    policy = None if sampler.answer is not None else make_policy("llama")
    return evaluate_lifebench(sampler, policy, make_tokenizer(), prompts, settings=settings)


def test_an_obedient_guide_scores_100_and_gets_the_control_of_the_prompt():
    sampler = Sampler()
    report = evaluate(sampler, targets=(5, 20))
    assert set(sampler.guides) == {(control, n) for control in CONTROLS for n in (5, 20)}
    lines = {row["model"]: row for row in report.tables["table2"] if row["source"] == "here"}
    assert [lines["guided"][name] for name in ("deviation", *CONTROLS)] == [0, 100, 100, 100]
    # unguided is 10 long: 100 % above 5 and 50 % below 20
    free = lines["unguided"]
    above, below = 100 * math.exp(-2), 100 * math.exp(-2.5)
    assert free["deviation"] == pytest.approx(75)
    assert free["equal"] == pytest.approx((above + below) / 2)
    assert free["at_most"] == pytest.approx((above + 100) / 2)
    assert free["at_least"] == pytest.approx((100 + below) / 2)
    # the cut is 5 where 5 is asked, and leaves the 10 where 20 is
    assert lines["truncated"]["equal"] == pytest.approx((100 + below) / 2)
    assert lines["truncated"]["at_most"] == 100


def test_the_papers_table_stands_beside():
    report = evaluate(Sampler(), targets=(5,))
    paper = [row for row in report.tables["table2"] if row["source"] == "paper"]
    assert len(paper) == len(TABLE_2) == 15
    seven = next(row for row in paper if row["model"] == "Qwen2.5-7B + LenVM 1.5B")
    assert [seven[name] for name in ("deviation", *CONTROLS)] == [44, 64.8, 96.1, 99.5]


@pytest.mark.parametrize(
    "answer",
    [
        Completion([], "error", []),  # the server failed
        Completion([5] * 30, "length", [0.0] * 30),  # never ended
        completion(1),  # as good as nothing
    ],
    ids=["error", "unended", "empty"],
)
def test_failures_score_zero_and_are_counted(answer):
    report = evaluate(Sampler(answer), targets=(30,), methods=("unguided", "guided"))
    for row in report.tables["summary"]:
        assert row["completions"] == len(PROMPTS)
        assert (row["score"], row["failed"], row["deviation"]) == (0, 1, 100)
    assert report.to_dict()["equal_guided_failed"] == 1


def test_what_the_official_programs_drop_is_dropped_there_alone():
    def sampler(requests, settings):
        return [completion(8), Completion([], "error", []), completion(8)]

    sampler.answer = object()
    report = evaluate(sampler, targets=(8,), methods=("unguided",), controls=("equal",))
    assert report.figures["equal_unguided_score"] == pytest.approx(200 / 3)
    assert report.figures["equal_unguided_official_percent_score"] == 100
    official = {row["scorer"]: row for row in report.tables["official"]}
    assert official["fraction"]["kept"] == pytest.approx(2 / 3)


def test_equal_requests_are_sampled_once():
    calls = []

    def sampler(requests, settings):
        calls.append(len(requests))
        return [completion(10) for _ in requests]

    sampler.answer = object()
    evaluate(sampler, targets=(5, 20), methods=("unguided", "truncated"))
    assert calls == [len(PROMPTS)], "prompts that ask for nothing are the same for every target"
    calls.clear()
    evaluate(sampler, [task("w3 w{word_count}")], targets=(5, 20), methods=("unguided",))
    assert calls == [1, 1], "and differ where they say it"


def test_a_prefix_stands_before_every_prompt():
    lengths = []

    def sampler(requests, settings):
        lengths.append(len(requests[0].prompt_ids))
        return [completion(10) for _ in requests]

    sampler.answer = object()
    for prefix in ("", "w3 w4 "):
        evaluate(sampler, [task("w5 w6")], targets=(5,), methods=("unguided",), prefix=prefix)
    assert lengths == [2, 4]


def test_in_words_the_guide_gets_tokens_and_words_are_measured():
    """Tokens w0..: `w5` is one word and one token, so 6 words are 6 tokens."""
    sampler = Sampler()
    report = evaluate(
        sampler,
        [ENGLISH, CHINESE],
        targets=(6,),
        unit="words",
        methods=("unguided", "guided", "truncated", "countdown"),
        controls=("equal",),
    )
    assert report.figures["tokens_per_word"] == {"en": 1.0, "cn": 1.0}
    assert sampler.guides == [("equal", 6)] * 2
    lines = {row["model"]: row for row in report.tables["table2"] if row["source"] == "here"}
    assert lines["guided"]["equal"] == 100 and lines["truncated"]["equal"] == 100
    assert lines["countdown"]["equal"] == pytest.approx(100 * math.exp(-2 * 4 / 6))
    assert {row["language"] for row in report.tables["languages"]} == {"en", "cn"}


def test_files_and_screen(tmp_path):
    report = evaluate(Sampler(), targets=(5, 20))
    files = {file.name: file for file in report.save(tmp_path)}
    assert {"lifebench.json", "lifebench.png", "lifebench_table2.csv"} <= set(files)
    assert all(file.stat().st_size > 0 for file in files.values())
    screen = io.StringIO()
    Console(width=100, file=screen).print(lifebench_view(report))
    text = screen.getvalue()
    assert "guided" in text and "paper: Qwen2.5-7B + LenVM 1.5B" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"controls": ("exactly",)}, "controls must be some of equal, at_most, at_least"),
        ({"methods": ()}, "methods must be some of"),
        ({"unit": "letters"}, "unit must be some of tokens, words"),
        ({"targets": (0,)}, "targets must be at least 1 tokens"),
        ({"targets": (512,), "max_tokens": 512}, "a response shall have 512 tokens and an end"),
    ],
)
def test_settings_that_cannot_be_evaluated_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LifebenchSettings(**fields)
