"""Graders of text: right, wrong, and whatever a policy may write instead of an answer."""

import importlib.util
import json

import pytest

from reward_fns import (
    GRADERS,
    demo,
    get_grader,
    gsm8k,
    math_answer,
    mathvista,
    multiple_choice,
)
from reward_fns.graders import grader_of, true_answer
from reward_fns.stated import last_boxed

HUGE = "\\boxed{" * 60_000 + "#### answer is (" * 30_000 + "```python\n" * 10_000 + "9" * 200_000
VISTA = {
    "answer": "1.20",
    "question_type": "free_form",
    "answer_type": "float",
    "precision": 1.0,
    "choices": None,
}
CHOICE = {
    "answer": "145°",
    "question_type": "multi_choice",
    "answer_type": "text",
    "choices": ["135°", "140°", "145°", "150°"],
}
TRUTH = {
    "demo": "8",
    "gsm8k": "72",
    "math": "1/2",
    "multiple_choice": "B",
    "mathvista": json.dumps(VISTA),
    "code": "assert f() == 1",
    "ifeval_rules": json.dumps({"instruction_id_list": ["startend:quotation"], "kwargs": [{}]}),
}
GARBAGE = [
    "",
    " ",
    "\x00",
    "\\boxed{",
    "\\boxed",
    "}{",
    "####",
    "answer is",
    "```",
    "ا٣",
    HUGE,
    None,
]

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)


@pytest.mark.parametrize("name", sorted(GRADERS))
@pytest.mark.parametrize("text", GARBAGE, ids=lambda text: repr(text)[:20])
def test_garbage_is_wrong_and_no_error(name, text):
    assert get_grader(name)(text, TRUTH[name]) == 0.0


def test_huge_is_huge():
    assert len(HUGE) > 1_000_000


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("5 + 3 = 8 the answer is 8", 1.0),
        ("the answer is 9", 0.0),
        ("the answer is 8 the answer is 8", 0.0),
        ("8", 0.0),
    ],
)
def test_demo(text, score):
    assert demo.grade(text, "8") == score
    assert demo.compute_score("demo", text, "8", {"response_tokens": 3}) == score


@pytest.mark.parametrize("truth", ["", None, "eight", "[8]"])
def test_demo_needs_a_whole_number_as_truth(truth):
    with pytest.raises(ValueError, match="no whole number"):
        demo.grade("the answer is 8", truth)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("so 70 + 2 = 72\n#### 72", 1.0),
        ("#### $72.00", 1.0),
        ("####72.", 1.0),
        ("#### 1,072", 0.0),
        ("#### -72", 0.0),
        ("#### 71\n#### 72", 1.0),  # of two answers the last counts
        ("#### 72\n#### 71", 0.0),
        ("it is \\boxed{72}", 1.0),
        ("it is \\boxed{72 dollars}", 1.0),
        ("it is 72", 0.0),  # no stated answer
        ("#### seventy-two", 0.0),
        ("#### " + "7" * 100, 0.0),
        ("\\boxed{71}\n#### 72", 1.0),  # the later of box and mark
        ("#### 71\nno, \\boxed{72}", 1.0),
        ("#### 72\nno, \\boxed{71}", 0.0),
        ("\\boxed{72}\n#### Notes\nDone in 3 steps", 1.0),  # a heading is no answer
        ("#### Step 3: total\n\\boxed{72}", 1.0),
        ("\\boxed{72}\n#### 2. Check", 1.0),
        ("##### Step 72", 0.0),
        ("#### Answer: **72**", 1.0),
        ("####\n72", 1.0),
        ("#### x = 72", 1.0),
        ("#### 72\n#### 72, 73", 0.0),  # an answer, but not one number
        ("#### 72 or 73", 0.0),
        ("\\boxed{\\frac{72}{5}}", 0.0),
        ("\\boxed{72{,}000}", 0.0),
        ("\\boxed{72}, inside \\boxed as asked", 1.0),
    ],
)
def test_gsm8k(text, score):
    assert gsm8k.grade(text, "72") == score
    assert gsm8k.compute_score("openai/gsm8k", text, "5 * 14 + 2 = 72\n#### 72") == score


def test_gsm8k_compares_numbers():
    assert gsm8k.grade("#### 1,234,567.50", "1234567.5") == 1.0
    assert gsm8k.grade("#### 0.5", ".5") == 1.0
    assert gsm8k.grade("#### -3", -3) == 1.0
    assert gsm8k.grade("\\boxed{\\frac{1}{2}}", 0.5) == 1.0
    assert gsm8k.grade("#### 72", '["72", "72.0"]') == 1.0


@pytest.mark.parametrize(
    "truth",
    ["three", "", None, "20, 30", '["1", "2"]', '{"target": 3}', "9 eggs for $18", float("nan")],
)
def test_gsm8k_needs_one_number_as_truth(truth):
    with pytest.raises(ValueError, match="has no number, or not one"):
        gsm8k.grade("#### 3", truth)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("B", 1.0),
        ("(b).", 1.0),
        ("The answer is (B) because A is not", 1.0),
        ("Answer: **B**", 1.0),
        ("the answer is option B.", 1.0),
        ("\\boxed{B}", 1.0),
        ("\\boxed{\\text{(B)}}", 1.0),
        ("The answer is A. No: the answer is B.", 1.0),  # of two answers the last counts
        ("The answer is B. No: the answer is A.", 0.0),
        ("\\boxed{A} or \\boxed{B}", 1.0),
        ("\\boxed{AB}", 0.0),
        ("\\boxed{B. Paris}", 1.0),  # a label with its option's text
        ("\\boxed{B: A polygenic risk score}", 1.0),
        ("\\boxed{\\textbf{(B)}\\ 12}", 1.0),
        ("\\boxed{\\textbf{B}\\ 12}", 1.0),
        ("\\boxed{\\text{B. 12 m/s}}", 1.0),
        ("\\boxed{Option B}", 1.0),
        ("\\boxed{{\\bf B}}", 1.0),
        ("\\boxed{\\textbf{(B)} \\quad 12}", 1.0),
        ("The answer is therefore (B).", 1.0),
        ("The answer is (B), since C is not", 1.0),
        ("The answer is (B), (C)", 0.0),
        ("\\boxed{B} as in \\boxed above", 1.0),
        ("\\boxed{Berlin}", 0.0),
        ("\\boxed{B and C}", 0.0),  # two options are none
        ("\\boxed{(B), (C)}", 0.0),
        ("The answer is B or C", 0.0),
        ("Answer: B/C", 0.0),
        ("Answer: (B)-(C)", 0.0),
        ("The answer is (B) - A is a distractor", 1.0),
        ("The answer is B and A is wrong", 1.0),
        ("**Answer**: B", 1.0),
        ("**Answer:** $B$", 1.0),
        ("The answer is: B", 1.0),
        ("Answer: \\text{B}", 1.0),
        ("## Answer\n\n**B**", 1.0),
        ('{"answer": "B"}', 1.0),
        ("<answer>(B) Paris</answer>", 1.0),
        ("The correct option is B.", 1.0),
        ("The answer is not (B)", 0.0),
        ("Answer: B. Answer choice A is a distractor.", 1.0),
        ("B) Paris", 1.0),
        ("**B.** Paris", 1.0),
        ("B) is wrong", 0.0),
        ("A) 3 B) 4 C) 5", 0.0),  # the options, no choice
        ("the answer is a number", 0.0),
        ("The answer is Bananas", 0.0),
        ("I like B best", 0.0),
    ],
)
def test_multiple_choice(text, score):
    assert multiple_choice.grade(text, "B") == score
    assert multiple_choice.compute_score("mmlu", text, "(B)") == score


def test_multiple_choice_needs_a_letter_as_truth():
    for truth in ("Berlin", "", None, '["A", "B"]', 1):
        with pytest.raises(ValueError, match="no option"):
            multiple_choice.grade("B", truth)


@pytest.mark.parametrize("text", ["The answer is A number", "The answer is A polygenic score"])
def test_an_article_is_no_option(text):
    assert multiple_choice.grade(text, "A") == 0.0


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{1} \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {x}", "x"),
        ("\\boxed{1} \\boxed{2", None),  # the last box was cut
        ("$\\boxed 3$", "3"),
        ("$\\boxed -42.$", "-42"),
        ("\\(\\boxed x\\)", "x"),
        ("\\boxed\\frac{1}{2}", "\\frac{1}{2}"),
        ("\\fbox{3}", "3"),
        ("\\boxed{\\text{so } \\boxed{4}}", "4"),
        ("\\boxed{4}, which stands inside \\boxed above", "4"),  # a mention is no box
        ("\\boxed{4} as asked in \\boxed{}", "4"),
        ("\\boxed{\\left\\{x\\right.}", "\\left\\{x\\right."),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{a \\\\{b}}", "a \\\\{b}"),
        ("\\boxedwood{3}", None),
        ("\\boxed{}", None),
        ("none", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


def test_math_needs_no_worker_for_equal_strings():
    assert math_answer.grade("\\boxed{ \\frac{1}{2} }", "\\frac{1}{2}") == 1.0
    assert math_answer.grade("so \\boxed{x + 1}", "thus $\\boxed{x+1}$") == 1.0
    assert math_answer.grade("the answer is 7", "7") == 0.0  # not in a box
    assert math_answer.grade("\\boxed{" + "1" * 2_000 + "}", "1") == 0.0


@needs_math_verify
@pytest.mark.parametrize(
    ("formula", "truth", "score"),
    [
        ("\\frac{1}{2}", "0.5", 1.0),
        ("(x+1)^2", "x^2+2x+1", 1.0),
        ("2", "\\frac{4}{2}", 1.0),
        ("2", "3", 0.0),
        ("\\frac{}{}{", "3", 0.0),
        (")(", "3", 0.0),
        ("50\\%", "50", 1.0),  # a percent sign or a final dot makes no other answer
        ("50\\%", "0.5", 1.0),
        ("12.5\\%", "12.5", 1.0),
        ("0.5\\%", "50\\%", 0.0),
        ("0.5", "50", 0.0),
        ("5.", "5", 1.0),
        ("\\frac{\\pi}{2}.", "\\frac{\\pi}{2}", 1.0),
        ("6 - 5i\\,.", "6-5i", 1.0),
        ("11,\\! 111", "11111", 1.0),
        ("1 1/2", "\\frac{3}{2}", 1.0),  # a mixed number, neither 11/2 nor 1
        ("1 1/2", "11/2", 0.0),
        ("1 1/2", "1", 0.0),
        ("2\\frac34", "2.75", 1.0),
        ("2 3", "23", 0.0),  # two numbers, neither 23 nor 5
        ("2 3", "5", 0.0),
        ("\\text{2 3}", "23", 0.0),
        ("2 3", "2 3", 1.0),
        ("10\\,000", "10000", 1.0),
        ("10{,}000", "10000", 1.0),
        ("10\\,000", "10", 0.0),
        ("10^{-20}", "10^{-19}", 0.0),  # tiny values differ
        ("10^{-20}", "\\frac{1}{10^{20}}", 1.0),
        ("1e-20", "10^{-20}", 1.0),
        ("10^{-500}", "10^{-501}", 0.0),
        ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}", 0.0),
        ("(10^{-20}, 1)", "(10^{-19}, 1)", 0.0),
        ("0", "10^{-20}", 0.0),
        ("0.333333", "\\frac13", 1.0),
        ("0.\\overline{3}", "\\frac13", 1.0),
        ("0.1\\overline{6}", "\\frac16", 1.0),
        ("0.\\overline{3}", "0.3", 0.0),
        ("\u22125", "-5", 1.0),
        ("90\u00b0", "90", 1.0),
        ("\\log_2 8", "3", 1.0),
        ("(6,5)", "(5,6)", 0.0),
        ("\\left\\{\\begin{array}{l}x=1\\end{array}\\right.", "\\{\\begin{array}{l}x=2", 0.0),
    ],
)
def test_math_compares_formulas(formula, truth, score):
    assert math_answer.compute_score("math", f"so $\\boxed{{{formula}}}$", truth) == score


@pytest.mark.parametrize(
    "truth", ["", " ", None, '["1", "2"]', '{"a": 1}', [1, 2], float("nan"), "$$"]
)
def test_math_needs_one_formula_as_truth(truth):
    with pytest.raises(ValueError, match="is no formula"):
        math_answer.grade("\\boxed{nan}", truth)


def test_math_reads_a_list_of_one():
    assert math_answer.grade("\\boxed{72}", '["72"]') == 1.0
    assert math_answer.grade("\\boxed 4", "4") == 1.0


@needs_math_verify
def test_math_ends_a_comparison_that_hangs():
    assert math_answer.grade("\\boxed{0.5}", "\\frac{1}{2}") == 1.0  # the worker is up
    assert math_answer.grade("\\boxed{9^{9^{9^9}}}", "7", time_limit=0.5) == 0.0
    assert math_answer.grade("\\boxed{0.5}", "\\frac{1}{2}") == 1.0  # and replaced


def test_math_without_math_verify_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    worker = math_answer._Worker()
    with pytest.raises(ImportError, match=r"lenvm-rl\[evals\]"):
        worker.equal("1/2", "0.5", 1.0)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("so it is \\boxed{C}", 1.0),  # a letter stands for its option's text
        ("\\boxed{(C)}", 1.0),
        ("\\boxed{\\text{C}}", 1.0),
        ("\\boxed{(C) 145°}", 1.0),
        ("\\boxed{145°}", 1.0),  # and so does the text itself
        ("Answer: C", 1.0),
        ("The answer is: (C)", 1.0),
        ("\\boxed{\\textbf{(C)}\\ 145°}", 1.0),
        ("the answer is 145°.", 1.0),
        ("C", 1.0),
        ("\\boxed{B}", 0.0),
        ("\\boxed{E}", 0.0),  # there is no fifth option
        ("\\boxed{145}", 0.0),  # names no option: not the nearest one
        ("I would say C or so", 0.0),
    ],
)
def test_mathvista_options(text, score):
    assert mathvista.grade(text, CHOICE) == score
    assert mathvista.compute_score("mathvista", text, json.dumps(CHOICE)) == score
    extra = {"extra": json.dumps(CHOICE)}
    assert mathvista.compute_score("multiple_choice/mathvista", text, "C", extra) == score


@pytest.mark.parametrize(
    ("kind", "precision", "answer", "text", "score"),
    [
        ("float", 1.0, "1.2", "\\boxed{1.23}", 1.0),  # rounded to its precision
        ("float", 1.0, "1.2", "\\boxed{1.26}", 0.0),
        ("float", 2.0, "0.21", "\\boxed{0.214 m}", 1.0),
        ("float", 2, "0.21", "\\boxed{0.2}", 0.0),
        ("integer", None, "13", "\\boxed{13}", 1.0),
        ("integer", None, "13", "\\boxed{13.0}", 1.0),
        ("integer", None, "1300", "\\boxed{1,300}", 1.0),
        ("integer", None, "13", "the answer is 13 apples", 1.0),
        ("integer", None, "13", "13 apples", 0.0),  # nothing is stated
        ("list", None, "[1, 3]", "\\boxed{[1, 3]}", 1.0),
        ("list", None, "[1, 3]", "\\boxed{1,3}", 1.0),
        ("list", None, "[1, 3]", "\\boxed{[3, 1]}", 0.0),
        ("list", None, "[1, 3]", "\\boxed{[1, 3 or 4]}", 0.0),
        ("list", None, "[0.5, 3]", "\\boxed{\\{\\frac{1}{2}, 3\\}}", 1.0),
        ("float", 2, "0.75", "\\boxed{\\frac{3}{4}}", 1.0),
        ("integer", None, "-5", "\\boxed{\u22125}", 1.0),
        ("integer", None, "20", "\\boxed{20, 30}", 0.0),  # not one number
        ("integer", None, "7", "\\boxed{\\frac{x}{7}}", 0.0),
        ("integer", None, "1200", "\\boxed{1{,}200}", 1.0),
        ("text", None, "Yes", "\\boxed{yes}", 1.0),
    ],
)
def test_mathvista_free_answers(kind, precision, answer, text, score):
    truth = {"question_type": "free_form", "answer_type": kind, "answer": answer}
    assert mathvista.grade(text, {**truth, "precision": precision}) == score


def test_mathvista_needs_the_fields_of_its_question():
    for field in ("answer", "question_type", "answer_type", "choices"):
        with pytest.raises(ValueError, match=f"lacks {field}"):
            mathvista.grade("C", {**CHOICE, field: None})
    with pytest.raises(ValueError, match="lacks precision"):
        mathvista.grade("1", {**VISTA, "precision": None})
    with pytest.raises(ValueError, match="is no object"):
        mathvista.grade("C", "C")
    with pytest.raises(ValueError, match="none of its choices"):
        mathvista.grade("C", {**CHOICE, "answer": "C"})
    with pytest.raises(ValueError, match="is no 'float'"):
        mathvista.grade("C", {**VISTA, "answer": "much"})


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("openai/gsm8k", "gsm8k"),
        ("math/deepmath", "math"),
        ("DigitalLearningGmbH/MATH-lighteval", "math"),
        ("code/apps", "code"),
        ("openai/openai_humaneval", "code"),
        ("multiple_choice/mathvista", "mathvista"),
        ("demo/easy", "demo"),
        ("demo-products/hard", "demo"),
        ("wildchat/English", None),
        ("", None),
    ],
)
def test_a_data_source_tells_its_grader(source, name):
    assert grader_of(source) == name


def test_what_stands_beside_a_ground_truth_reaches_its_grader():
    assert true_answer("mathvista", "C", CHOICE)["answer"] == "145°"
    assert true_answer("gsm8k", "72", {"extra": "no JSON"}) == "72"
    assert true_answer("code", '{"asserts": []}', {"entry_point": "f"}) == '{"asserts": []}'
    for truth in (
        "def check(c): ...",
        '{"test": "def check(c): ..."}',
        {"test": "def check(c): ..."},
    ):
        called = {"test": "def check(c): ...", "entry_point": "f"}
        assert true_answer("code", truth, {"entry_point": "f"}) == called
