"""The code grader: tests pass and fail, and nothing a program does hurts the machine."""

import json
import time

import pytest

from reward_fns.code_tests import Limits, compute_score, grade

SHORT = Limits(seconds=1, memory=256 * 1024**2, file_size=1024**2)
GOOD = "def f(x):\n    return x + 1\n"
ASSERTS = {"asserts": ["assert f(1) == 2", "assert f(2) == 3"]}


def test_right_and_wrong_functions():
    assert grade(GOOD, ASSERTS, limits=SHORT) == 1.0
    assert grade(f"Here it is:\n```python\n{GOOD}```\nDone.", ASSERTS, limits=SHORT) == 1.0
    half = "def f(x):\n    return 2\n"
    assert grade(half, ASSERTS, limits=SHORT) == 0.0
    assert grade(half, ASSERTS, limits=SHORT, partial=True) == 0.5
    assert compute_score("code", GOOD, json.dumps(ASSERTS)) == 1.0
    assert compute_score("code", GOOD, "assert f(3) == 4") == 1.0  # plain statements


def test_programs_that_read_and_print():
    tests = {"inputs": ["1 2\n", "30 4\n"], "outputs": ["3\n", "34"]}
    program = "a, b = map(int, input().split())\nif __name__ == '__main__':\n    print(a + b, '')\n"
    assert grade(program, tests, limits=SHORT) == 1.0
    first_only = "print(3)"
    assert grade(first_only, tests, limits=SHORT, partial=True) == 0.5


def test_calls_and_their_values():
    tests = {"fn_name": "f", "inputs": [[1, 2], [3, 4]], "outputs": [[1, 2], [3, 4]]}
    assert grade("def f(a, b): return a, b", tests, limits=SHORT) == 1.0
    assert grade("def f(a, b): return b, a", tests, limits=SHORT) == 0.0


@pytest.mark.parametrize(
    "code",
    [
        "def f(x: return",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "rows = [0] * 10**10\n" + GOOD,
        "rows = bytearray(2)\nwhile True: rows += rows",
        "import os\nwhile True: os.fork()",
        "open('big', 'w').write('x' * 10**7)\n" + GOOD,
        "def f(x):\n    import os\n    os.kill(os.getppid(), 9)\n    return x + 1\n",
    ],
    ids=lambda code: code[:24],
)
def test_what_breaks_is_wrong(code):
    assert grade(code, ASSERTS, limits=SHORT) == 0.0


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)"])
def test_what_never_ends_is_stopped(code):
    start = time.monotonic()
    assert grade(code, ASSERTS, limits=Limits(wall_seconds=0.5)) == 0.0
    assert time.monotonic() - start < 10.0


def test_processor_time_is_limited_too():
    limits = Limits(seconds=1, wall_seconds=60.0)
    code = "import resource\nassert resource.getrlimit(resource.RLIMIT_CPU) == (1, 1)\n" + GOOD
    assert grade(code, ASSERTS, limits=limits) == 1.0


@pytest.mark.parametrize(
    "statement",
    [
        "os.fork()",
        "os.system('true')",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 0)",
        "import subprocess",
        "import _posixsubprocess",
        "import socket",
        "import ctypes",
        "open('/etc/passwd')",
        "os.open('/', os.O_RDONLY)",
        "os.listdir('/') and open('/proc/self/maps')",
        "open('/dev/fd/3')",
        "open(type('Own', (str,), {'__eq__': lambda *_: True})('/etc/passwd'))",
    ],
)
def test_what_is_refused_raises_permission_error(statement):
    # only a solution that is refused gets as far as a right answer
    code = f"import os\ntry:\n    {statement}\nexcept PermissionError:\n    f = lambda x: x + 1\n"
    assert grade(code, ASSERTS, limits=SHORT) == 1.0


def test_nothing_outside_the_working_directory_changes(tmp_path):
    kept, new = tmp_path / "kept.txt", tmp_path / "new.txt"
    kept.write_text("kept")
    statements = [
        f"open({str(new)!r}, 'w')",
        f"os.open({str(new)!r}, os.O_CREAT | os.O_WRONLY)",
        f"os.mkdir({str(new)!r})",
        f"os.remove({str(kept)!r})",
        f"os.rename({str(kept)!r}, 'mine')",
        f"os.symlink({str(tmp_path)!r}, 'way')",
        f"os.link({str(kept)!r}, 'way')",
        f"os.chdir({str(tmp_path)!r})",
        f"os.truncate({str(kept)!r}, 0)",
        f"shutil.rmtree({str(tmp_path)!r})",
    ]
    code = ["import os, shutil", "refused = 0"]
    for statement in statements:
        code += ["try:", f"    {statement}", "except PermissionError:", "    refused += 1"]
    count = [f"assert refused == {len(statements)}"]
    assert grade("\n".join(code), {"asserts": count}, limits=SHORT) == 1.0
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept.txt", "kept")]


def test_files_in_the_working_directory_are_allowed():
    code = "open('a', 'w').write('1')\nassert open('a').read() == '1'\n" + GOOD
    assert grade(code, ASSERTS, limits=SHORT) == 1.0


def test_ordinary_modules_and_threads_work():
    code = (
        "import bisect, collections, dataclasses, functools, heapq, itertools, math, random, re\n"
        "import string, sys, threading, typing\n"
        "thread = threading.Thread(target=print)\nthread.start()\nthread.join()\n"
    )
    assert grade(code + GOOD, ASSERTS, limits=SHORT) == 1.0


def test_printing_without_end_is_stopped():
    flood = "while True: print('x' * 100_000)"
    assert grade(flood, {"inputs": [""], "outputs": ["x"]}, limits=SHORT) == 0.0


def test_too_much_code_is_wrong():
    assert grade("x = 1\n" * 50_000 + GOOD, ASSERTS) == 0.0


@pytest.mark.parametrize(
    "truth",
    [
        "assert True",
        "# nothing",
        "f(1)",
        "x = f(1)",
        "assert callable(f)",
        "try:\n    assert f(1) == 2\nexcept Exception:\n    pass",
        {"asserts": ["import math"]},
    ],
)
def test_a_ground_truth_that_nonsense_passes_is_refused(truth):
    for text in ("", GOOD):
        with pytest.raises(ValueError, match="passed by programs that do nothing"):
            grade(text, truth)


CHECK = "def check(candidate):\n    assert candidate(1) == 2\n"


def test_humanevals_own_test_is_called_or_refused():
    with pytest.raises(ValueError, match="defines check but never calls it"):
        grade(GOOD, CHECK)
    truth = {"test": CHECK, "entry_point": "f"}
    assert grade(GOOD, truth, limits=SHORT) == 1.0
    assert grade("def f(x):\n    return x\n", truth, limits=SHORT) == 0.0
    for extra in ({"entry_point": "f"}, {"extra": json.dumps({"entry_point": "f"})}):
        assert compute_score("code", GOOD, CHECK, extra) == 1.0
        assert compute_score("code", "pass", CHECK, extra) == 0.0
    called = CHECK + "\ncheck(f)\n"
    assert grade(GOOD, called, limits=SHORT) == 1.0
    named_check = {"test": CHECK, "entry_point": "check"}
    assert grade("def check(x):\n    return x + 1\n", named_check, limits=SHORT) == 1.0


def test_statements_that_pass_by_themselves_are_no_share():
    truth = {"asserts": ["import math", "assert f(1) == 2", "assert f(2) == 3"]}
    half = "def f(x):\n    return 2\n"
    scores = [grade(text, truth, partial=True) for text in ("pass", half, GOOD)]
    assert scores == [0.0, 0.5, 1.0]


DOUBLE = {"inputs": ["2\n", "5\n"], "outputs": ["4\n", "10\n"]}


@pytest.mark.parametrize(
    ("program", "score"),
    [
        ("a = int(input())\nprint(a * 2)\nexit()\nprint(0)", 1.0),
        ("print(int(input()) * 2)\nquit()", 1.0),
        ("print(int(input()) * 2)\nexit(1)", 0.0),
        ("print(int(open(0).read()) * 2)", 1.0),
        ("print(int(open('/dev/stdin').readline()) * 2)", 1.0),
        ("import os\nprint(int(os.read(0, 9)) * 2)", 1.0),
        ("open('/dev/stdin', 'w').write('9')", 0.0),
        ("n = deque([int(input())])\nprint(n[0] * 2)", 1.0),  # judges bring deque along
        ("import sys\nfor line in sys.stdin:\n    print(float(line) * 2)", 1.0),  # 4.0 is 4
    ],
)
def test_programs_as_competitions_run_them(program, score):
    assert grade(f"```python\n{program}\n```", DOUBLE, limits=SHORT) == score


@pytest.mark.parametrize(
    ("printed", "wanted", "score"),
    [
        ("0.3333333333333333", "0.333333333", 1.0),
        ("2", "2.0", 1.0),
        ("0.34", "0.333", 0.0),
        ("1000000.5", "1000000", 0.0),
        ("1e-20", "1e-19", 0.0),
        ("1e-17", "0.0", 1.0),
        ("123456789012345679", "123456789012345678", 0.0),
        ("07", "7", 0.0),
        ("1  2 ", "1 2", 1.0),
        ("1 2", "1\n2", 0.0),
        ("yes", "YES", 0.0),
        ("nan", "nan", 1.0),
        ("1.0e5", "100000", 1.0),
    ],
)
def test_printed_numbers_are_compared_as_numbers(printed, wanted, score):
    truth = {"inputs": [""], "outputs": [wanted]}
    assert grade(f"print({printed!r})", truth, limits=SHORT) == score


@pytest.mark.parametrize(
    ("body", "output", "score"),
    [
        ("0.1 * 3", 0.3, 1.0),
        ("2.0", 2, 1.0),
        ("(1, (2, 3))", [1, [2, 3]], 1.0),
        ("{1: 2.0000000001}", {"1": 2}, 1.0),
        ("1000000.5", 1000000, 0.0),
        ("1e-20", 1e-19, 0.0),
        ("10**18 + 1", 10**18, 0.0),
        ("'2'", 2, 0.0),
        ("4", [4], 1.0),  # APPS wraps values
        ("[4]", [4], 1.0),
        ("4", [4, 4], 0.0),
        ("float('nan')", 1.0, 0.0),
        ("10**400", 1.0, 0.0),
    ],
)
def test_values_are_compared_as_values(body, output, score):
    truth = {"fn_name": "f", "inputs": [[1]], "outputs": [output]}
    assert grade(f"def f(x):\n    return {body}\n", truth, limits=SHORT) == score


def test_wrapped_values_are_all_read_alike():
    truth = {"fn_name": "f", "inputs": [[2], [3]], "outputs": [[4], [5]]}
    mixed = "def f(x):\n    return x + 2 if x == 2 else [x + 2]\n"
    assert grade(mixed, truth, limits=SHORT) == 0.0


def test_functions_may_have_the_names_of_builtins():
    truth = "assert sum(2, 3) == [2, 3]"
    right = "```python\ndef sum(a, b):\n    return [a, b]\n```\n"
    usage = "```python\ndef show():\n    print(sum([1]))\nshow()\n```"
    assert grade(right + usage, truth, limits=SHORT) == 1.0
    assert grade("class Solution:\n    def sum(self, a, b):\n        return [a, b]", truth) == 1.0
    assert grade(usage, truth, limits=SHORT) == 0.0


def test_methods_of_a_solution_are_functions():
    solution = (
        "class Solution:\n    def __init__(self):\n        self.calls = 0\n"
        "    def f(self, x: List[int]) -> int:\n        self.calls += 1\n"
        "        return x[0] + self.calls\n"
    )
    calls = {"fn_name": "Solution.f", "inputs": [[[1]], [[2]]], "outputs": [2, 3]}
    assert grade(solution, calls, limits=SHORT) == 1.0  # every call has an object of its own
    asserts = {"asserts": ["assert f([1]) == 2", "assert f([2]) == 3"]}
    assert grade(f"from typing import List\n{solution}", asserts, limits=SHORT) == 1.0


def test_livecodebenchs_cases():
    cases = [{"input": "2\n", "output": "4\n", "testtype": "stdin"}]
    assert grade("print(int(input()) * 2)", json.dumps(cases), limits=SHORT) == 1.0
    assert grade("print(0)", cases, limits=SHORT) == 0.0
    about = {"testtype": "functional", "metadata": json.dumps({"func_name": "add"})}
    cases = [{"input": '[1, 2]\n"a"', "output": '"a3"', **about}]
    right = "class Solution:\n    def add(self, xs, name):\n        return name + str(sum(xs))\n"
    assert grade(right, cases, limits=SHORT) == 1.0
