"""HumanEval and MBPP: records that the code grader runs as they are."""

import json

import pytest

from lenvm_rl.prompts.sets import ask, load_prompt_set
from reward_fns.graders import get_grader
from tests.prompts.sets.files import lines, without

STUB = '''import math
from typing import List


def helper(x: float) -> float:
    return math.floor(x)


def total(xs: List[float]) -> int:
    """ Sum of floors. """
'''
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": STUB,
    "entry_point": "total",
    "canonical_solution": "    return sum(helper(x) for x in xs)\n",
    "test": "\n\ndef check(candidate):\n    assert candidate([1.5, 2.5]) == 3 * helper(1.2)\n",
}
MBPP = {
    "task_id": 2,
    "prompt": "Write a function to double a number.",
    "code": "def double(x):\n    return 2 * x",
    "test_imports": ["import math"],
    "test_list": ["assert double(2) == 4", "assert double(math.inf) == math.inf"],
}
# MBPP's full config and the stubs of its mirrors
MBPP_FULL = {
    "task_id": 2,
    "text": MBPP["prompt"],
    "test_setup_code": "import math",
    "test_list": MBPP["test_list"],
}
MBPP_STUB = {
    "task_id": "MbppEval/2",
    "prompt": "def double(x):\n    '''\n    Double it.\n    '''\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert double(2) == 4\n",
}


def one(name, row, tmp_path):
    return load_prompt_set(name, source=lines(tmp_path / "x.jsonl", [row])).prompts[0]


def grade(prompt, code):
    return get_grader("code")(f"Thus:\n```python\n{code}\n```", prompt.ground_truth)


def test_humaneval_asks_for_the_stub_and_is_graded_by_its_test(tmp_path):
    prompt = one("humaneval", HUMANEVAL, tmp_path)
    begin = ask("python", "")[0]["content"]
    assert prompt.messages[0]["content"].startswith(begin)
    assert STUB.strip() in prompt.messages[0]["content"]
    assert prompt.data_source == "code/humaneval" and prompt.prompt_id == "humaneval-HumanEval/0"
    kept = without(HUMANEVAL, "canonical_solution", "prompt")
    assert {key: prompt.extra[key] for key in kept} == kept
    assert grade(prompt, STUB + HUMANEVAL["canonical_solution"]) == 1.0
    assert grade(prompt, STUB + "    return 4\n") == 0.0


def test_an_answer_need_not_repeat_the_stubs_helpers(tmp_path):
    code = "def total(xs):\n    return sum(helper(x) for x in xs)\n"
    assert grade(one("humaneval", HUMANEVAL, tmp_path), code) == 1.0


@pytest.mark.parametrize("row", [MBPP, MBPP_FULL, MBPP_STUB], ids=["sanitized", "full", "stub"])
def test_mbpp_in_its_layouts(tmp_path, row):
    prompt = one("mbpp", row, tmp_path)
    assert prompt.data_source == "code/mbpp"
    assert grade(prompt, "def double(x):\n    return 2 * x") == 1.0
    assert grade(prompt, "def double(x):\n    return x") == 0.0


@pytest.mark.parametrize("name", ["check", "double"])
def test_stubs_of_a_function_called_check_and_of_tests_that_lack_math(tmp_path, name):
    row = {
        "prompt": f"def {name}(x):\n    pass\n",
        "entry_point": name,
        "test": f"def check(candidate):\n    assert {name}(math.pi) == 2 * math.pi\n",
    }
    prompt = one("mbpp", row, tmp_path)
    assert grade(prompt, f"def {name}(x):\n    return 2 * x") == 1.0
    assert grade(prompt, f"def {name}(x):\n    return x") == 0.0


def test_mbpp_shows_its_tests(tmp_path):
    prompt = one("mbpp", MBPP, tmp_path)
    assert "assert double(2) == 4" in prompt.messages[0]["content"]
    assert json.loads(prompt.ground_truth)["asserts"] == [
        "import math\nassert double(2) == 4",
        "import math\nassert double(math.inf) == math.inf",
    ]


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("humaneval", without(HUMANEVAL, "test"), "no column 'test'"),
        ("humaneval", without(HUMANEVAL, "entry_point"), "no column 'entry_point'"),
        ("humaneval", {**HUMANEVAL, "entry_point": "sum_up"}, "does not define 'sum_up'"),
        ("humaneval", {**HUMANEVAL, "test": "assert total([])"}, "'test' does not define check"),
        ("mbpp", without(MBPP, "test_list"), r"no column 'test_list' \(the tests"),
        ("mbpp", without(MBPP, "prompt"), "no column 'prompt' or 'text'"),
    ],
)
def test_rows_without_tests(tmp_path, name, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        one(name, row, tmp_path)
