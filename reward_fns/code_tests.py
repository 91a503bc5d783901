"""Grader of programs: run the response's Python code against unit tests, in another process.

    code: 1 if all tests pass, else 0 (with `partial=True`: the share of tests that pass)

`code_blocks.py` says which part of the response is its program, `code_truth.py` which shapes a
ground truth may have: statements, programs that read and print, or calls and their values. A ground
truth that an empty program passes, or any function whose value is never looked at, is refused.

Judged as the judges of the data do: numbers with a decimal point within a millionth, tuples as
lists, methods of `class Solution` as functions, outputs that APPS wraps into lists of one, and what
competition judges import is there for programs that read and print or are called.

Every run has limits on wall-clock and CPU time, memory and file size, a fresh working directory, no
site-packages (`-I -S`), no other processes, no sockets and no files elsewhere (`code_sandbox.py`).

These are guard rails against the accidents and the usual tricks of generated code, not a security
boundary: Python's audit hooks can be got round by code that is written to do so, and code that
shares a process with its tests can find their token. Train an adversary in a container of its own.
"""

from __future__ import annotations

import builtins
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from reward_fns.code_truth import Tests, read_tests
from reward_fns.graders import verl_grader

SANDBOX = Path(__file__).with_name("code_sandbox.py")
LONGEST_RESPONSE = 1_000_000  # characters; in a longer one no program is looked for
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9  # distance of decimals, and of decimals from zero
_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
# what may be called but not looked at: a test that it passes compares nothing
_NONSENSE = """
class Nonsense:
    def __init__(self, *arguments, **named): pass
    def refuse(self, *other): raise TypeError
    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = refuse
    __hash__ = object.__hash__
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run may use."""

    seconds: int = 5  # CPU time: what a busy machine makes slow is not wrong
    wall_seconds: float = 20.0  # wall-clock time, for programs that wait
    memory: int = 512 * 1024**2  # bytes of address space
    file_size: int = 4 * 1024**2  # bytes of any file, the printed output included


def grade(
    text: str,
    answer: str | Mapping[str, Any],
    *,
    partial: bool = False,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> float:
    """Run the response's code against the tests of `answer`; no text raises.

    Args:
        text: the response.
        answer: its tests, see `code_truth.py`.
        partial: count the tests passed.
        limits: of every run.

    Returns:
        1.0 if all tests pass, else 0.0; with `partial` the share of tests passed. Tests run in
        order, and the first one that fails ends the run.

    Raises:
        ValueError: `answer` has no tests, tests that cannot be run, or tests that pass nonsense.
    """
    tests = checked_tests(answer)
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_RESPONSE:
        return 0.0
    job = {"text": text, "wanted": tests.wanted}
    if tests.asserts:
        given = _passed_by_nothing(tests)  # imports and the like, which are no tests
        total, passed = len(tests.asserts) - given, _run_asserts(job, tests, limits) - given
    elif tests.fn_name:
        total, passed = len(tests.inputs), _run_calls(job, tests, limits)
    else:
        total, passed = len(tests.inputs), _run_programs(job, tests, limits)
    return max(passed, 0) / total if partial else float(passed == total)


def checked_tests(answer: Any) -> Tests:
    """The tests of a ground truth, of which nonsense passes not all.

    Raises:
        ValueError: it does, or there are none, or they cannot be run.
    """
    tests = read_tests(answer)
    if tests.asserts and _passed_by_nothing(tests) == len(tests.asserts):
        uncalled = "def check(" in tests.asserts[0]
        raise ValueError(
            f"the ground truth {str(answer)[:80]!r} is passed by programs that do nothing: "
            + (
                "it defines check but never calls it, so give {'test': ..., 'entry_point': ...}"
                if uncalled
                else "compare values of the function in question"
            )
        )
    return tests


@lru_cache(maxsize=4096)
def _passed_by_nothing(tests: Tests) -> int:
    """Number of statements that an empty program passes; all of them, where functions with no
    value do."""
    limits = Limits()
    wanted = [name for name in tests.wanted if not hasattr(builtins, name)]
    nonsense = _NONSENSE + "".join(f"{name} = Nonsense\n" for name in wanted)
    if _run_asserts({"code": nonsense}, tests, limits) == len(tests.asserts):
        return len(tests.asserts)
    return _run_asserts({"code": ""}, tests, limits)


def _run_asserts(job: dict[str, Any], tests: Tests, limits: Limits) -> int:
    """Number of statements that pass, up to the first that does not."""
    token = secrets.token_hex(16)
    _, result = _run({**job, "mode": "asserts", "asserts": tests.asserts}, token, "", limits)
    return result.split().count(token)


def _run_calls(job: dict[str, Any], tests: Tests, limits: Limits) -> int:
    """Number of calls with the right value, up to the first that fails to return one."""
    token = secrets.token_hex(16)
    job = {**job, "mode": "calls", "fn_name": tests.fn_name, "calls": tests.inputs}
    _, result = _run(job, token, "", limits)
    prefix = token + " "
    values = [line[len(prefix) :] for line in result.splitlines() if line.startswith(prefix)]
    readings = [tests.outputs]
    if all(isinstance(output, list) and len(output) == 1 for output in tests.outputs):
        readings.append(tuple(output[0] for output in tests.outputs))  # APPS wraps values
    return max(
        sum(_same_json(value, wanted) for value, wanted in zip(values, reading, strict=False))
        for reading in readings
    )


def _same_json(value: str, wanted: Any) -> bool:
    """Whether a value, as JSON, is the one that is wanted; tuples are lists there."""
    try:
        # through JSON: keys of objects are texts on both sides
        return _same(json.loads(value), json.loads(json.dumps(wanted)))
    except (ValueError, RecursionError):
        return False


def _same(value: Any, wanted: Any) -> bool:
    """Whether two values are equal, decimals within rounding."""
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_same, value, wanted))
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(_same(value[k], wanted[k]) for k in wanted)
    if isinstance(value, float) or isinstance(wanted, float):
        numbers = isinstance(value, (int, float)) and isinstance(wanted, (int, float))
        return numbers and _close(value, wanted)
    return value == wanted


def _close(value: float, wanted: float) -> bool:
    """Whether two numbers, one of them a decimal, differ by rounding alone."""
    try:
        value, whole, wanted = float(value), isinstance(wanted, int), float(wanted)
    except OverflowError:
        return False
    if wanted == 0.0:
        return abs(value) <= _ABSOLUTE
    return math.isclose(value, wanted, rel_tol=_ABSOLUTE if whole else _RELATIVE)


def _run_programs(job: dict[str, Any], tests: Tests, limits: Limits) -> int:
    """Number of inputs for which the program prints the output, up to the first failure."""
    for passed, (given, wanted) in enumerate(zip(tests.inputs, tests.outputs, strict=True)):
        printed, _ = _run({**job, "mode": "stdin"}, "", given, limits)
        if printed is None or not _same_text(printed, wanted):
            return passed
    return len(tests.inputs)


def _same_text(printed: str, wanted: str) -> bool:
    """Whether two outputs have the same words in the same lines; empty last lines do not count."""
    lines = [[line.split() for line in text.rstrip().splitlines()] for text in (printed, wanted)]
    return len(lines[0]) == len(lines[1]) and all(
        len(words) == len(others) and all(map(_same_word, words, others))
        for words, others in zip(*lines, strict=True)
    )


def _same_word(word: str, wanted: str) -> bool:
    """Equal, or both numbers, one of them a decimal, that differ by rounding."""
    if word == wanted:
        return True
    if not _DECIMAL.fullmatch(word) or not _DECIMAL.fullmatch(wanted):
        return False
    whole = [_WHOLE.fullmatch(number) is not None for number in (word, wanted)]
    if all(whole) or max(len(word), len(wanted)) > 400:
        return False
    return _close(float(word), int(wanted) if whole[1] else float(wanted))


def _run(job: dict[str, Any], token: str, stdin: str, limits: Limits) -> tuple[str | None, str]:
    """One run in a fresh directory: what it printed (None if it failed) and its result file."""
    with (
        tempfile.TemporaryDirectory(prefix="code_tests-", ignore_cleanup_errors=True) as work,
        tempfile.TemporaryFile() as result,
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryFile() as given,
    ):
        given.write(stdin.encode(errors="replace"))
        given.seek(0)
        job = {
            **job,
            "token": token,
            "result_fd": result.fileno(),
            "cpu_seconds": limits.seconds,
            "memory": limits.memory,
            "file_size": limits.file_size,
        }
        Path(work, "job.json").write_text(json.dumps(job))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(SANDBOX)],
            cwd=work,
            env={"HOME": work},
            stdin=given,
            stdout=printed,
            stderr=subprocess.DEVNULL,
            pass_fds=(result.fileno(),),
            start_new_session=True,
        )
        try:
            failed = process.wait(limits.wall_seconds) != 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            failed = True
        printed.seek(0)
        result.seek(0)
        output = printed.read().decode(errors="replace")
        return (None if failed else output), result.read().decode(errors="replace")


compute_score = verl_grader("code", grade, settings=("partial",))
