"""Grader of programs: run the response's Python code against unit tests, in another process.

    code: 1 if all tests pass, else 0 (with `partial=True`: the share of tests that pass)

The code is the response's last fenced block, or the whole response where there is none. The
ground truth is a dict or its JSON:

    {"asserts": ["assert f(1) == 2", ...]}                   statements after the solution
    {"inputs": ["1 2\\n", ...], "outputs": ["3\\n", ...]}      programs that read and print
    {"fn_name": "f", "inputs": [[1, 2]], "outputs": [3]}     calls and their values

Text that is no JSON is one statement. Every run has limits on wall-clock and CPU time, memory and
file size, a fresh working directory, no site-packages (`-I -S`), no other processes, no sockets and
no files elsewhere (`code_sandbox.py`).

These are guard rails against the accidents and the usual tricks of generated code, not a security
boundary: Python's audit hooks can be got round by code that is written to do so, and code that
shares a process with its tests can find their token. Train an adversary in a container of its own.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SANDBOX = Path(__file__).with_name("code_sandbox.py")
LONGEST_CODE = 100_000  # characters
_FENCED = re.compile(r"```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.I)


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

    Returns:
        1.0 if all tests pass, else 0.0; with `partial` the share of tests passed. Tests run in
        order, and the first one that fails ends the run.

    Raises:
        ValueError: `answer` has no tests, or inputs and outputs differ in number.
    """
    tests = _parse_tests(answer)
    code = extract_code(text) if isinstance(text, str) else ""
    if not code.strip() or len(code) > LONGEST_CODE:
        return 0.0
    if "asserts" in tests:
        total, passed = len(tests["asserts"]), _run_asserts(code, tests["asserts"], limits)
    elif "fn_name" in tests:
        total, passed = len(tests["inputs"]), _run_calls(code, tests, limits)
    else:
        total, passed = len(tests["inputs"]), _run_programs(code, tests, limits)
    return passed / total if partial else float(passed == total)


def extract_code(text: str) -> str:
    """The last fenced block of a response (cut ones too), or all of it where there is none."""
    blocks = _FENCED.findall(text)
    return blocks[-1] if blocks else text


def _parse_tests(answer: str | Mapping[str, Any]) -> dict[str, Any]:
    tests: Any = answer
    if isinstance(answer, str):
        try:
            tests = json.loads(answer)
        except json.JSONDecodeError:
            tests = {"asserts": [answer]}
    if isinstance(tests, Mapping) and tests.get("asserts"):
        return {"asserts": list(tests["asserts"])}
    inputs, outputs = (
        (tests.get("inputs"), tests.get("outputs")) if isinstance(tests, Mapping) else (None, None)
    )
    if not inputs or outputs is None or len(inputs) != len(outputs):
        raise ValueError(
            f"the ground truth {str(answer)[:80]!r} has no tests: give 'asserts', or as many "
            "'inputs' as 'outputs' (and 'fn_name' for calls)"
        )
    return dict(tests)


def _run_asserts(code: str, asserts: list[str], limits: Limits) -> int:
    """Number of statements that pass, up to the first that does not."""
    token = secrets.token_hex(16)
    _, result = _run({"mode": "asserts", "code": code, "asserts": asserts}, token, "", limits)
    return result.split().count(token)


def _run_calls(code: str, tests: Mapping[str, Any], limits: Limits) -> int:
    """Number of calls with the right value, up to the first that fails to return one."""
    token = secrets.token_hex(16)
    job = {"mode": "calls", "code": code, "fn_name": tests["fn_name"], "calls": tests["inputs"]}
    _, result = _run(job, token, "", limits)
    prefix = token + " "
    values = [line[len(prefix) :] for line in result.splitlines() if line.startswith(prefix)]
    # both sides as JSON: a tuple is a list there
    expected = [json.dumps(output) for output in tests["outputs"]]
    return sum(value == wanted for value, wanted in zip(values, expected, strict=False))


def _run_programs(code: str, tests: Mapping[str, Any], limits: Limits) -> int:
    """Number of inputs for which the program prints the output, up to the first failure."""
    for passed, (given, wanted) in enumerate(zip(tests["inputs"], tests["outputs"], strict=True)):
        printed, _ = _run({"mode": "stdin", "code": code}, "", str(given), limits)
        if printed is None or _lines(printed) != _lines(str(wanted)):
            return passed
    return len(tests["inputs"])


def _lines(text: str) -> list[str]:
    """Lines without trailing blanks, and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


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


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Mapping[str, Any],
    extra_info: Mapping[str, Any] | None = None,
    *,
    partial: bool = False,
    **_: Any,
) -> float:
    """verl's reward function: the grade alone."""
    return grade(solution_str, ground_truth, partial=partial)
