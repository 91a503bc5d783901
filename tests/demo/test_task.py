"""The demo task: problems are deterministic and unique; the grader never raises."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.demo import task
from lenvm_rl.demo.task import Problem, grade, messages, random_problem, sample_problems, style


def test_a_sum_by_hand():
    problem = Problem((12, 7, -3))
    assert (problem.text, problem.answer, problem.family) == ("12 + 7 - 3 = ?", 16, "sums")
    # Two columns each: 12 + 7, then 19 - 3.
    assert (problem.columns, problem.level) == (4, "middling")
    assert messages(problem) == [{"role": "user", "content": "12 + 7 - 3 = ?"}]


def test_a_product_problem_by_hand():
    problem = Problem((347, 28), (6, 4))
    assert (problem.text, problem.answer) == ("347 * 6 + 28 * 4 = ?", 2194)
    # Three for 347 * 6 = 2082, two for 28 * 4 = 112, four for their sum.
    assert (problem.family, problem.columns, problem.level) == ("products", 9, "hard")


def test_the_ways_to_ask():
    problem = Problem((3, 4))
    asked = [
        messages(problem, thinking=False),
        messages(problem, tokens=120),
        messages(problem, thinking=False, tokens=5),
    ]
    assert [message["content"] for (message,) in asked] == [
        "3 + 4 = ? /no_think",
        "about 120 tokens: 3 + 4 = ?",
        "about 5 tokens: 3 + 4 = ? /no_think",
    ]


@given(
    seed=st.integers(),
    family=st.sampled_from(task.FAMILIES),
    digits=st.integers(1, task.MAX_DIGITS),
    parts=st.integers(2, 3),
)
def test_random_problem_stays_in_range(seed, family, digits, parts):
    problem = random_problem(random.Random(seed), family=family, digits=digits, parts=parts)
    assert (problem.family, len(problem.terms)) == (family, parts)
    assert max(len(str(abs(term))) for term in problem.terms) == digits
    assert all(term for term in problem.terms) and problem.terms[0] > 0
    assert len(problem.factors) == (parts if family == "products" else 0)
    assert all(2 <= factor <= 9 for factor in problem.factors)
    assert all(sum(problem.terms[: i + 1]) >= 0 for i in range(parts))
    # The text says the same: Python's own arithmetic agrees.
    assert eval(problem.text.removesuffix(" = ?")) == problem.answer


@pytest.mark.parametrize("family", task.FAMILIES)
def test_sample_problems_repeats_itself_and_depends_on_the_seed(family):
    first = sample_problems(200, seed=3, family=family)
    assert first == sample_problems(200, seed=3, family=family)
    assert first[:50] == sample_problems(50, seed=3, family=family)
    assert first != sample_problems(200, seed=4, family=family)


@pytest.mark.parametrize(("family", "parts"), [("sums", {2, 3, 4, 5}), ("products", {1, 2, 3})])
def test_sample_problems_are_unique_and_of_every_difficulty(family, parts):
    problems = sample_problems(1000, seed=0, family=family)
    assert len({problem.text for problem in problems}) == 1000
    assert {len(problem.terms) for problem in problems} == parts
    shares = [sum(p.level == level for p in problems) / 1000 for level in task.LEVELS]
    assert min(shares) > 0.12
    hard = sample_problems(50, seed=0, family=family, level="hard")
    assert {problem.level for problem in hard} == {"hard"}
    small = sample_problems(50, seed=0, family=family, digits=(1, 2))
    assert {max(len(str(abs(t))) for t in problem.terms) for problem in small} == {1, 2}
    assert sample_problems(0, seed=0, family=family) == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"digits": (0, 3)}, "digits is \\(0, 3\\)"),
        ({"digits": (1, 5)}, "digits is"),
        ({"digits": (3, 2)}, "digits is"),
        ({"family": "roots"}, "family is 'roots'; there are sums, products"),
        ({"level": "tough"}, "level is 'tough'; there are easy, middling, hard"),
        # Four steps of one-digit numbers have at most two columns each.
        ({"digits": (1, 1), "level": "hard"}, "sums of 1 to 1 digits gave only 0 different"),
        ({"n": -1}, "n is -1"),
    ],
)
def test_sample_problems_refuses_what_there_is_not(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample_problems(**{"n": 1, "seed": 0, **wrong})


@pytest.mark.parametrize(
    "text",
    [
        "the answer is 16",
        "the answer is 16.",
        "  12 + 7 = 19; 19 - 3 = 16; the answer is 16 \n",
        "<think></think>the answer is 16",
        "<think>12 + 7 = 3; 3 - 3 = 9</think>the answer is 16",
    ],
)
def test_grade_right(text):
    assert grade(text, 16) is True
    assert grade(text, "16") is True
    assert grade(text, 17) is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "16",
        "the answer is",
        "the answer is sixteen",
        "the answer is 016",
        "the answer is 16.0",
        "the answer is 16 17",
        "the answer is 16 wait",
        "the answer is 16. the answer is 16",
        "the answer is 15. no, the answer is 16",
        "the answer is " + "1" * 100_000,
        "the answer is 16" * 10_000,
        " " * 100_000 + "16",
        "the answer is १६",
    ],
)
def test_grade_wrong(text):
    assert grade(text, 16) is False


def test_grade_takes_negative_answers_and_no_text():
    assert grade("the answer is -4", -4)
    assert not grade("the answer is -4", 4)
    assert grade(None, 16) is False


@given(text=st.text(), answer=st.integers())
def test_grade_never_raises(text, answer):
    assert grade(text, answer) in (True, False)
    assert grade(f"{text} the answer is {text}", answer) in (True, False)


@given(prefix=st.text(alphabet="0123456789 +-=;.,\n"), answer=st.integers(-(10**9) + 1, 10**9 - 1))
def test_grade_looks_at_the_answer_alone(prefix, answer):
    assert grade(f"{prefix} the answer is {answer}", answer)
    assert not grade(f"{prefix} the answer is {answer}", answer + 1)


@pytest.mark.parametrize(
    ("thoughts", "wanted"),
    [
        ("", "direct"),
        ("12 + 7 = 19", "short"),
        ("12 + 7: 2 + 7 = 9, 1 + 0 = 1, so 19", "columns"),
        ("12 + 7 = 19; wait, 7 + 12: 7 + 2 = 9, 0 + 1 = 1, so 19; yes", "checked"),
    ],
)
def test_style_of_each_kind(thoughts, wanted):
    assert style(f"<think>{thoughts}</think>the answer is 19") == wanted


def test_no_text_is_direct():
    assert style("") == "direct"
