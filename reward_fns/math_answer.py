r"""Grader of MATH and other problems with a formula as answer, by math-verify.

    math: 1 if the last \boxed{} of the response is mathematically equal to the true answer, else 0

No box or an unfinished one is no answer; of several the last counts. Equal strings (but for blanks
that separate nothing) are equal at once; all else is parsed and compared by math-verify (`pip
install 'lenvm-rl[evals]'`) in a worker process of its own (`math_worker.py`): its time limits need
a main thread, which a reward manager's executor is not, and a formula that hangs or eats memory is
killed with the worker. What cannot be decided within the limit is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_fns.graders import verl_grader
from reward_fns.stated import last_boxed

LONGEST_ANSWER = 1_000  # characters; a longer box is garbage
TIME_LIMIT = 10.0  # seconds for one comparison
START_LIMIT = 60.0  # seconds for a worker to import math-verify
WORKER = Path(__file__).with_name("math_worker.py")


class _Worker:
    """One child process that compares formulas; started on demand, replaced when it fails."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # a fork inherits this object, but must not share its pipes

    def equal(self, expected: str, given: str, time_limit: float) -> bool:
        with self._lock:
            if self._process is None or self._owner != os.getpid():
                self._start()
            try:
                self._send({"expected": expected, "given": given})
                return bool(self._receive(time_limit)["equal"])
            except (TimeoutError, OSError):  # too slow, or killed by its own memory limit
                self._stop()
                return False

    def _start(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("the math grader needs math-verify: pip install 'lenvm-rl[evals]'")
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],  # -P: this folder's names stay out of its path
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._receive(START_LIMIT)
        except (TimeoutError, OSError) as error:
            self._stop()
            raise RuntimeError(
                "math-verify's worker did not start: is it installed whole?"
            ) from error

    def _send(self, message: Mapping[str, Any]) -> None:
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _receive(self, time_limit: float) -> dict[str, Any]:
        """One line of JSON from the worker.

        Raises:
            TimeoutError: it did not come in time.
            OSError: the worker is gone.
        """
        deadline, line = time.monotonic() + time_limit, b""
        pipe = self._process.stdout.fileno()
        ready = select.poll()  # unlike select, at home in processes with thousands of files
        ready.register(pipe, select.POLLIN)
        while not line.endswith(b"\n"):
            if not ready.poll(max(deadline - time.monotonic(), 0.0) * 1000):
                raise TimeoutError
            chunk = os.read(pipe, 65_536)
            if not chunk:
                raise OSError("the worker closed its output")
            line += chunk
        return json.loads(line)

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._process = None


_WORKER = _Worker()


def grade(text: str, answer: str, *, time_limit: float = TIME_LIMIT) -> float:
    r"""1.0 if the last `\boxed{}` equals `answer`, else 0.0; no text raises.

    Args:
        text: the response.
        answer: true answer in LaTeX, with or without a box of its own.
        time_limit: seconds for the comparison.

    Raises:
        ImportError: math-verify is not installed, and the strings differ.
        ValueError: `answer` is no formula: empty, an object or a list of several answers.
    """
    expected = _true_formula(answer)
    given = last_boxed(text) if isinstance(text, str) else None
    if given is None or not given or len(given) > LONGEST_ANSWER:
        return 0.0
    if _plain(given) == _plain(expected):
        return 1.0
    return float(_WORKER.equal(expected, given, time_limit))


def _true_formula(answer: Any) -> str:
    """The formula of a ground truth: alone, in a box, or the one item of a JSON list."""
    text = "" if answer is None else str(answer).strip()
    if text.startswith(('["', "['", '{"', "{'")) or isinstance(answer, (list, dict)):
        try:
            listed = json.loads(text) if isinstance(answer, str) else answer
        except ValueError:
            listed = None
        text = str(listed[0]).strip() if isinstance(listed, list) and len(listed) == 1 else ""
    boxed = last_boxed(text)
    formula = text if boxed is None else boxed
    if not _plain(formula) or formula in ("nan", "NaN"):
        raise ValueError(
            f"the ground truth {str(answer)[:80]!r} is no formula: math grades against one answer "
            "in LaTeX, not against nothing, several answers or an object"
        )
    return formula


def _plain(formula: str) -> str:
    """A formula without the dollar signs around it, a dot at its end, and blanks that separate
    nothing."""
    bare = re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", " ".join(formula.split()).strip("$ "))
    return bare.rstrip(".")


compute_score = verl_grader("math", grade)
