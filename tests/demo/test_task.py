"""The demo task: problems are deterministic and unique; the grader never raises."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.demo import task
from lenvm_rl.demo.task import Problem, grade, messages, random_problem, sample_problems, style


def test_problem_by_hand():
    problem = Problem((12, 7, -3))
    assert problem.text == "12 + 7 - 3 = ?"
    assert problem.answer == 16
    assert problem.operands == 3
    assert messages(problem) == [{"role": "user", "content": "12 + 7 - 3 = ?"}]


@given(seed=st.integers(), operands=st.integers(2, 12))
def test_random_problem_stays_in_range(seed, operands):
    problem = random_problem(random.Random(seed), operands)
    assert problem.operands == operands
    sums = [sum(problem.terms[: i + 1]) for i in range(operands)]
    assert all(0 <= total <= task.MAX_TOTAL for total in sums)
    assert all(1 <= abs(term) <= task.MAX_TERM for term in problem.terms)
    assert problem.terms[0] > 0
    # The text says the same chain: Python's own arithmetic agrees.
    assert eval(problem.text.removesuffix(" = ?")) == problem.answer


def test_sample_problems_repeats_itself_and_depends_on_the_seed():
    first = sample_problems(200, seed=3)
    assert first == sample_problems(200, seed=3)
    assert first[:50] == sample_problems(50, seed=3)
    assert first != sample_problems(200, seed=4)


def test_sample_problems_are_unique_and_of_every_difficulty():
    problems = sample_problems(3000, seed=0)
    assert len({problem.text for problem in problems}) == 3000
    assert {problem.operands for problem in problems} == set(range(2, 13))
    only = sample_problems(100, seed=0, operands=(4, 5))
    assert {problem.operands for problem in only} == {4, 5}
    assert sample_problems(0, seed=0) == []


@pytest.mark.parametrize("operands", [(1, 3), (2, 13), (5, 4)])
def test_sample_problems_refuses_a_bad_range(operands):
    with pytest.raises(ValueError, match="operands is"):
        sample_problems(1, seed=0, operands=operands)


def test_sample_problems_refuses_a_negative_count():
    with pytest.raises(ValueError, match="n is -1"):
        sample_problems(-1, seed=0)


def test_sample_problems_says_when_the_range_is_exhausted():
    # 20 * 20 sums, and a - b for every b <= a <= 20, among which a - b < 0 is flipped to a + b.
    assert len(sample_problems(610, seed=0, operands=(2, 2))) == 610
    with pytest.raises(ValueError, match="only 610 different"):
        sample_problems(611, seed=0, operands=(2, 2))


@pytest.mark.parametrize(
    "text",
    [
        "the answer is 16",
        "the answer is 16.",
        "  12 + 7 = 19; 19 - 3 = 16; the answer is 16 \n",
        "first we take 12 and add 7 to get 3. the answer is 16",
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


def test_style_of_each_kind():
    assert style("the answer is 16") == "bare"
    assert style("12 + 7 = 19; the answer is 19") == "terse"
    assert style("first we take 12 and add 7 to get 19. the answer is 19") == "wordy"
    assert style("12 + 7 = 19; wait, let me see. 12 + 7 = 19; yes. the answer is 19") == "checking"
    assert style("") == "bare"
