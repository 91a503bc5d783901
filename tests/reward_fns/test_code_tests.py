"""The code grader: tests pass and fail, and nothing a program does hurts the machine."""

import json
import time

import pytest

from reward_fns.code_tests import Limits, compute_score, extract_code, grade

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


@pytest.mark.parametrize(
    "tests", ["{}", "[]", {"asserts": []}, {"inputs": ["1"], "outputs": []}, {"inputs": []}]
)
def test_a_ground_truth_without_tests_is_refused(tests):
    with pytest.raises(ValueError, match="no tests"):
        grade(GOOD, tests)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```py\na\n```\n```python\nb\n```", "b\n"),
        ("```\na\n``` ```python\ncut", "cut"),
        ("a = 1", "a = 1"),
    ],
)
def test_extract_code(text, code):
    assert extract_code(text) == code


def test_too_much_code_is_wrong():
    assert grade("x = 1\n" * 50_000 + GOOD, ASSERTS) == 0.0
