"""The process that runs one solution for `code_tests`. Not meant to be imported: run as a script.

It reads and deletes `job.json` in its working directory, a fresh one; shuts the doors (limits of
the operating system on CPU time, memory and file size, its own network where the kernel allows
that, and an audit hook that refuses other processes, sockets and files elsewhere); then finds the
program in the response, runs it and, after it, the tests. Every passed test writes the job's token
to the result file, so that leaving early passes nothing.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

WORK = os.path.realpath(os.getcwd())
READABLE = (WORK, os.path.realpath(os.path.dirname(os.__file__)), "/dev/null", "/dev/urandom")
STDIN = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET

REFUSED = ("ctypes.", "socket.", "subprocess.", "pty.", "shutil.", "os.exec", "os.spawn")
REFUSED += ("os.fork", "os.posix_spawn", "os.system", "os.kill", "os.symlink", "os.link")
REFUSED += ("os.chdir", "os.fchdir", "os.chmod", "os.chown", "signal.pthread_kill")
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.utime"}
MODULES = {"ctypes", "_ctypes", "_posixsubprocess", "subprocess", "socket", "_socket", "pty"}
MODULES |= {"multiprocessing", "_multiprocessing"}


def leave_network() -> None:
    """Move to a network without interfaces, where unprivileged user namespaces are allowed."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(NEW_USER | NEW_NETWORK)
    for name in [name for name in sys.modules if name.split(".")[0] in ("ctypes", "_ctypes")]:
        del sys.modules[name]


def limit(cpu_seconds: int, memory: int, file_size: int) -> None:
    """Set what the process may use, soft and hard, so that it cannot take more back."""
    for kind, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def within(path: object, places: tuple[str, ...]) -> bool:
    """Whether a path, links resolved, is one of `places` or below it."""
    if isinstance(path, int):
        return True  # an open file: it was allowed when it was opened
    real = os.path.realpath(os.fsdecode(path))
    return any(real == place or real.startswith(place + os.sep) for place in places)


def guard(event: str, arguments: tuple) -> None:
    """Audit hook: raise PermissionError for what a solution has no business doing."""
    refused = event.startswith(REFUSED)
    if event == "import":
        refused = arguments[0].split(".")[0] in MODULES
    elif event in CHANGES:
        refused = not all(
            within(path, (WORK,)) for path in arguments if isinstance(path, (str, bytes))
        )
    elif event == "open" and arguments[0] is not None:
        path, _, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        refused = not within(path, (WORK, "/dev/null") if writes else READABLE)
        # what it may read as file 0 anyway; a string of its own kind could claim to equal anything
        refused &= bool(writes) or type(path) is not str or path not in STDIN
        # an open directory elsewhere would be a way to write there by relative paths
        refused |= not isinstance(path, int) and os.path.isdir(path) and not within(path, (WORK,))
    if refused:
        raise PermissionError(f"{event} is not allowed here")


def run(job: dict, find_program: Callable[..., str | None], result: int) -> None:
    """Run the program, then its tests: statements, or calls whose values are written out."""
    builtins.exit = builtins.quit = sys.exit  # as in Python with its site module
    mode, wanted = job["mode"], job.get("wanted", ())
    code = job.get("code")
    if code is None:
        code = find_program(
            job["text"], wanted=wanted, reads=mode == "stdin", judged=mode != "asserts"
        )
    if code is None:
        raise SystemExit("no part of the response is a Python program")
    program = {"__name__": "__main__" if mode == "stdin" else "solution"}
    exec(compile(code, "solution.py", "exec"), program)
    for name in wanted:
        if name not in program and hasattr(program.get("Solution"), name):
            program[name] = method(program["Solution"], name)
    token = job["token"].encode()
    for test in job.get("asserts", ()):
        exec(compile(test, "test.py", "exec"), program)
        os.write(result, token + b"\n")
    for arguments in job.get("calls", ()):
        value = program[job["fn_name"]](*arguments)
        os.write(result, token + b" " + json.dumps(value).encode() + b"\n")


def method(solution: type, name: str) -> Callable[..., Any]:
    """A method of a class as a function: every call has an object of its own."""
    return lambda *arguments, **named: getattr(solution(), name)(*arguments, **named)


def finder() -> Callable[..., str | None]:
    """`find_program` of the file beside this one, which `-I` keeps out of the path."""
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "code_blocks.py")
    spec = importlib.util.spec_from_file_location("code_blocks", place)
    blocks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(blocks)
    return blocks.find_program


def main() -> None:
    """Read the job, shut the doors, run."""
    with open("job.json") as file:
        job = json.load(file)
    os.remove("job.json")
    sys.argv = ["solution.py"]
    find_program = finder()
    leave_network()
    limit(job["cpu_seconds"], job["memory"], job["file_size"])
    sys.addaudithook(guard)
    run(job, find_program, job["result_fd"])


if __name__ == "__main__":
    main()
