"""Runs that share a few processes, and go on where they were killed.

A run is a function of a module and its arguments; what it returns is written to a JSON file, whole
or not at all, and a run whose file is there is not repeated. Each run is a process of one thread,
which ends with its parent; what it prints goes to a .log beside its file. Runs start in the order
given, so what is there when a pool is stopped are the first ones.

Nothing heavy is imported with this module: a benchmark may set the environment of torch first.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

Run = Callable[..., Any]
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class RunsFailed(RuntimeError):
    """Some runs ended without a result; the message names them and their logs."""


def run_missing(
    run: Run, todo: Mapping[Path, Sequence[Any]], *, jobs: int = 1, label: str = "runs"
) -> list[Any]:
    """Call `run(*arguments)` for every file that is not there yet; returns the content of all.

    Args:
        run: a function of a module, one run.
        todo: JSON file of a run -> its arguments, which can be pickled.
        jobs: processes at a time; 0 runs one after the other in this process.
        label: of the bar on stderr.
    Raises:
        RunsFailed: after the others have been done. In this process, a run that raises it has
            failed; any other error of a run ends all.
        ValueError: jobs below 0.
    """
    from lenvm_rl.rollouts.progress import progress_bar

    if jobs < 0:
        raise ValueError(f"jobs must be at least 0, got {jobs}.")
    missing = {path: arguments for path, arguments in todo.items() if not path.is_file()}
    with progress_bar(label, len(todo), shown=True) as advance:
        advance(len(todo) - len(missing))
        if jobs:
            failed = _in_processes(run, missing, jobs, advance)
        else:
            failed = []
            for path, arguments in missing.items():
                try:
                    _keep(path, run(*arguments))
                except RunsFailed as error:
                    failed.append(str(error))
                advance(1)
    if failed:
        raise RunsFailed(
            f"{len(failed)} of {len(todo)} runs failed; the others are kept, call again to repeat "
            "these.\n" + "\n".join(failed)
        )
    return [json.loads(path.read_text()) for path in todo]


def fingerprint(content: Any, files: Iterable[Path] = ()) -> str:
    """12 hexadecimal digits of what JSON can hold and of the bytes of files."""
    found = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def one_thread() -> None:
    """Runs are compared, so each computes on one thread, whatever else there is."""
    import torch

    os.environ.update(_ONE_THREAD)
    torch.set_num_threads(1)


def _in_processes(
    run: Run, missing: Mapping[Path, Sequence[Any]], jobs: int, advance: Callable[[int], None]
) -> list[str]:
    """At most `jobs` children at once; returns a line about each that failed."""
    context = multiprocessing.get_context("spawn")
    waiting, running, failed = list(missing), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                path = waiting.pop(0)
                path.parent.mkdir(parents=True, exist_ok=True)
                child = context.Process(target=_child, args=(run, missing[path], path))
                child.start()
                running[child] = path
            wait([child.sentinel for child in running])
            for child in [child for child in running if child.exitcode is not None]:
                path = running.pop(child)
                if not path.is_file():
                    failed.append(_failure(path, child.exitcode))
                advance(1)
    finally:
        for child in running:
            child.kill()
            child.join()
    return failed


def _child(run: Run, arguments: Sequence[Any], path: Path) -> None:
    with path.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    one_thread()
    _keep(path, run(*arguments))


def _keep(path: Path, found: Any) -> None:
    from lenvm_rl.rollouts.atomic import write_json

    write_json(path, found)


def _end_with_parent() -> None:
    # A child of a parent that got `kill -9` would otherwise compute beside the one started again.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _failure(path: Path, status: int | None) -> str:
    log = path.with_suffix(".log")
    printed = log.read_text(errors="replace").strip() if log.exists() else ""
    last = (printed.splitlines() or ["nothing printed"])[-1]
    return f"  {path.stem}: exit status {status}: {last}\n    log: {log}"
