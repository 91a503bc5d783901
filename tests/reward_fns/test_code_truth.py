"""Tests of programs are read from what data sets hold, and refused where they cannot be run."""

import json

import numpy as np
import pytest

from reward_fns.code_truth import read_tests

PROGRAM = {"inputs": ["2\n"], "outputs": ["4\n"]}


@pytest.mark.parametrize(
    "truth",
    [
        PROGRAM,
        json.dumps(PROGRAM),
        json.dumps(json.dumps(PROGRAM)),
        str(PROGRAM),  # what version 0.1 wrote
        {"asserts": None, **PROGRAM},
        {"asserts": [], **PROGRAM},
        {"fn_name": None, **PROGRAM},
        {"fn_name": "", "test": None, **PROGRAM},
        {"inputs": np.array(["2\n"], dtype=object), "outputs": np.array(["4\n"], dtype=object)},
        [{"input": "2\n", "output": "4\n"}],
        {"input": ["2\n"], "output": ["4\n"]},
        {"inputs": [["2", ""]], "outputs": [["4", ""]]},  # APPS: lists of lines
    ],
)
def test_one_program_in_many_spellings(truth):
    tests = read_tests(truth)
    assert (tests.inputs, tests.outputs) == (("2\n",), ("4\n",))
    assert tests.fn_name is None and not tests.asserts


@pytest.mark.parametrize(
    "truth",
    [
        "assert f(1) == 2",
        ["assert f(1) == 2"],
        '["assert f(1) == 2"]',
        {"asserts": "assert f(1) == 2"},
        {"asserts": ["assert f(1) == 2"], "inputs": None, "outputs": []},
    ],
)
def test_one_statement_in_many_spellings(truth):
    tests = read_tests(truth)
    assert tests.asserts == ("assert f(1) == 2",) and tests.wanted == ("f",)


def test_what_the_program_must_define_is_what_the_tests_use_and_do_not_bind():
    statement = "import math\nfor x in range(3):\n    assert f(x) == math.sqrt(g.y)\n"
    assert read_tests(statement).wanted == ("f", "g", "range")


@pytest.mark.parametrize(
    ("truth", "sentence"),
    [
        *(("{}", "no tests"), ("[]", "no tests"), ("", "no tests"), (None, "no tests")),
        *(("null", "no tests"), ("72", "no tests"), (float("nan"), "no tests")),
        ({"asserts": []}, "no tests"),
        ({"inputs": ["1"], "outputs": []}, "no tests"),
        ({"inputs": "ab", "outputs": "cd"}, "no tests"),
        ({"target": ["Paris"]}, "no tests"),
        ("{'inputs': [1, 2", "it is no JSON"),
        ("{'inputs': array(['2'])}", "it is no JSON"),
        ("hello world", "cannot be run: neither JSON of tests nor Python"),
        ("eJxrYJmaz8+AAhSmxNDAyA==", "cannot be run"),
        ({"asserts": ["assert f(1) =="]}, "cannot be run"),
        ({"asserts": [1]}, "asserts must be texts"),
        ("import numpy as np\nassert np.all(f(1))", "tests import numpy"),
        ({"inputs": ["1"], "outputs": ["\n"]}, "every program would pass"),
        ({"inputs": ["1"], "outputs": [None]}, "no texts"),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [None]}, "every function would pass"),
        ({"fn_name": "f", "inputs": [1], "outputs": [2]}, "list of f's arguments"),
        ({"fn_name": "f", "inputs": ["x y"], "outputs": ["2"]}, "cannot be read"),
        ([{"input": "1", "output": "2", "testtype": "functional"}], "name no function"),
    ],
)
def test_what_cannot_be_run_is_refused(truth, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_tests(truth)
