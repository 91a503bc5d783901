"""Questions with answers: prompts, truths that their graders accept, and rows that lack them."""

import pytest

from lenvm_rl.prompts.sets import ask, load_prompt_set
from reward_fns.graders import get_grader
from tests.prompts.sets.files import lines, without

ROWS = {
    "deepmath": {
        "question": "2^{10}?",
        "final_answer": "1024",
        "difficulty": 3.0,
        "topic": "Arithmetic",
        "r1_solution_1": "long",
    },
    "gsm8k": {"question": "Eggs?", "answer": "16 - 3 = <<16-3=13>>13 eggs.\n#### 1,013"},
    "math500": {
        "problem": "Half?",
        "solution": "...",
        "answer": "\\frac{1}{2}",
        "subject": "Algebra",
        "level": 2,
        "unique_id": "test/algebra/1.json",
    },
    "aime": {"ID": "2024-I-1", "Problem": "Count.", "Answer": 204},
}


def one(name, row, tmp_path):
    return load_prompt_set(name, source=lines(tmp_path / "x.jsonl", [row])).prompts[0]


@pytest.mark.parametrize(
    ("name", "question", "truth", "extra", "prompt_id"),
    [
        (
            "deepmath",
            "2^{10}?",
            "1024",
            {"difficulty": 3.0, "topic": "Arithmetic"},
            "deepmath-train-0",
        ),
        ("gsm8k", "Eggs?", "1,013", {}, "gsm8k-test-0"),
        (
            "math500",
            "Half?",
            "\\frac{1}{2}",
            {"subject": "Algebra", "level": 2},
            "math500-test/algebra/1.json",
        ),
        ("aime", "Count.", "204", {}, "aime-2024-I-1"),
    ],
)
def test_a_row_becomes_a_prompt(tmp_path, name, question, truth, extra, prompt_id):
    prompt = one(name, ROWS[name], tmp_path)
    assert prompt.messages == ask("math", question)
    assert (prompt.ground_truth, prompt.extra, prompt.prompt_id) == (truth, extra, prompt_id)


@pytest.mark.parametrize("name", ROWS)
def test_the_grader_of_the_data_source_accepts_the_truth_alone(tmp_path, name):
    prompt = one(name, ROWS[name], tmp_path)
    grade = get_grader(prompt.data_source.partition("/")[0])
    assert grade(f"So \\boxed{{{prompt.ground_truth}}}.", prompt.ground_truth) == 1.0
    assert grade("So \\boxed{7}.", prompt.ground_truth) == 0.0


def test_aime_as_other_copies_write_it(tmp_path):
    prompt = one("aime", {"id": 60, "problem": "Count.", "answer": "204", "year": "2024"}, tmp_path)
    assert (prompt.ground_truth, prompt.prompt_id) == ("204", "aime-60")


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        (
            "deepmath",
            without(ROWS["deepmath"], "final_answer"),
            r"row 1: no column 'final_answer' \(the answer, which the grader needs\). There are: q",
        ),
        (
            "deepmath",
            {**ROWS["deepmath"], "final_answer": None},
            "nothing in column 'final_answer'",
        ),
        ("gsm8k", {"question": "Eggs?"}, r"no column 'answer' .*There are: question\."),
        ("gsm8k", {"question": "Eggs?", "answer": "13 eggs"}, "row 1: no ####"),
        ("gsm8k", {"question": "Eggs?", "answer": "13 eggs ####  "}, "row 1: no ####"),
        ("gsm8k", {"question": " ", "answer": "#### 1"}, "'question' must be text"),
        ("math500", {"problem": ["Half?"], "answer": "1"}, "'problem' must hold text or messages"),
        ("aime", {"Question": "?"}, "no column 'Problem' or 'problem' or 'question'"),
    ],
)
def test_rows_that_lack_something(tmp_path, name, row, sentence):
    with pytest.raises(ValueError, match=f"{name} .*{sentence}"):
        one(name, row, tmp_path)


def test_an_answer_of_zero_is_an_answer(tmp_path):
    assert one("aime", {"Problem": "Count.", "Answer": 0}, tmp_path).ground_truth == "0"
