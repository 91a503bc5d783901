"""Each rule of IFEval by hand, and what is no rule."""

import json

import pytest

from reward_fns.graders import check_truth, true_answer
from reward_fns.ifeval_rules import RULES, grade


def rules(*pairs):
    """The ground truth of (name, arguments)."""
    return {"instruction_id_list": [name for name, _ in pairs], "kwargs": [k for _, k in pairs]}


MORE = {"relation": "at least", "num_words": 3}
FEWER = {"relation": "less than", "num_words": 3}
NTH = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"}
SIX = {"let_relation": "at least", "letter": "!", "let_frequency": 2}
FEW_T = {"let_relation": "less than", "letter": "t", "let_frequency": 2}
TWICE = {"relation": "at least", "keyword": "war", "frequency": 2}
ONCE = {"relation": "less than", "keyword": "war", "frequency": 2}
CASES = [
    ("length_constraints:number_words", MORE, "one two-three", "one two"),
    ("length_constraints:number_words", FEWER, "one two", "one, two. Three"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a *** b ***", "a *** *** b"),
    ("length_constraints:nth_paragraph_first_word", NTH, "First.\n\n'Then, b", "Then.\n\nFirst"),
    ("length_constraints:nth_paragraph_first_word", NTH, "a\n\nTHEN b", "a\n\nthen b\n\nc"),
    ("keywords:existence", {"keywords": ["mom", "c++"]}, "Mom knows C++", "Mom knows C"),
    ("keywords:frequency", TWICE, "War and wars", "one war"),
    ("keywords:frequency", ONCE, "one war", "war, war"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rocky rocket", "a Rock."),
    ("keywords:letter_frequency", SIX, "yes! no!", "yes! no"),
    ("keywords:letter_frequency", FEW_T, "The end", "That"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [b]", "[a] b"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. x", "Bye. PS"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. x", "P.S. x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b", "* a\n- b\n- c"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "* a\n**b**", "**a**"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* **b**", "*a* **"),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2},
     "Part 1\na\nPart 2\nb", "Part 1\na\npart 2"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<A poem>>\nRoses", "<< >>\nRoses"),
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", "My answer is No"),
    ("combination:two_responses", {}, "a\n******\nb", "a ****** a"),
    ("combination:two_responses", {}, "******a******b******", "a ****** ****** b"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, " say hi. Hi!", "Hi! Say hi."),
    ("startend:end_checker", {"end_phrase": "The end."}, '"... THE END."', "The end. Bye"),
    ("startend:quotation", {}, ' "all of it"\n', '"'),
    ("punctuation:no_comma", {}, "one; two", "one, two"),
    ("change_case:english_lowercase", {}, "all small, 1", "Not all"),
    ("change_case:english_capital", {}, "ALL BIG, 1", "ALL BIg"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_a_rule_is_followed_or_not(name, arguments, right, wrong):
    truth = rules((name, arguments))
    assert grade(right, json.dumps(truth)) == 1.0
    assert grade(wrong, truth) == 0.0
    assert grade(" \n", truth) == 0.0, "an empty response follows nothing"


def test_every_rule_is_tried_here():
    assert {name for name, *_ in CASES} == set(RULES)


def test_all_rules_of_a_prompt_count():
    truth = rules(("punctuation:no_comma", {}), ("change_case:english_lowercase", {}))
    assert [grade(text, truth) for text in ("a b", "a, b", "A b")] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("truth", "sentence"),
    [
        ("no JSON", "holds no rules"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "holds no rules"),
        (rules(), "every response would follow them"),
        (rules(("language:response_language", {"language": "kn"})), "leave such prompts out"),
        (rules(("startend:end_checker", {})), "needs end_phrase, got nothing"),
        (rules(("punctuation:no_comma", {"letter": "a"})), "needs nothing, got {'letter': 'a'}"),
        (rules(("length_constraints:number_words", {**MORE, "relation": "about"})), "neither"),
        (rules(("startend:end_checker", {"end_phrase": 5})), "cannot be checked with"),
    ],
)
def test_what_is_no_rule_is_refused_before_sampling(truth, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_truth("ifeval_rules", truth, None)


def test_arguments_that_are_null_and_rules_beside_the_ground_truth():
    nulls = {"relation": None, "num_words": None, "end_phrase": "bye"}
    extra = {"key": 1, **rules(("startend:end_checker", nulls))}
    assert grade("well, bye", true_answer("ifeval_rules", None, extra)) == 1.0
