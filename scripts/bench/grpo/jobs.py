"""How do many runs share a few processes, and how does a bench that was killed go on?"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.evals.result import finite
from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.rollouts.progress import progress_bar
from scripts.bench.grpo.training import Settings


def run_missing(
    run: Callable[..., dict[str, Any]], todo: Mapping[Path, tuple], *, jobs: int
) -> None:
    """Call `run(*arguments)` for every file that is not there yet, and write what it returns.

    Args:
        run: a function of a module, one run; it gets a process and one thread.
        todo: JSON file of a run -> its arguments.
        jobs: runs at a time.
    """
    missing = {path: arguments for path, arguments in todo.items() if not path.exists()}
    context = multiprocessing.get_context("spawn")
    with (
        progress_bar("runs", len(todo), shown=True) as advance,
        ProcessPoolExecutor(jobs, mp_context=context, initializer=start_worker) as pool,
    ):
        advance(len(todo) - len(missing))
        futures = {pool.submit(run, *arguments): path for path, arguments in missing.items()}
        for future in as_completed(futures):
            with replacing(futures[future]) as file:
                file.write_text(json.dumps(finite(future.result())) + "\n")
            advance(1)


def start_worker() -> None:
    """One thread of computation, and an end when the bench is killed.

    A pool's worker waits for its next run on a pipe that it holds open itself, so it would outlive
    a parent that got `kill -9`, and compute beside the bench that is started again.
    """
    one_thread()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def one_thread() -> None:
    """Runs are compared, so each computes on one thread, whatever else there is."""
    torch.set_num_threads(1)


def digest(settings: Settings, only: Collection[str] | None = None) -> str:
    """Names the settings (or `only` some) and the value model's weights, not where it lies: other
    ones are other runs."""
    weights = sorted(Path(settings.lenvm).glob("*.safetensors"))
    sizes = {
        key: value
        for key, value in asdict(settings).items()
        if key != "lenvm" and (only is None or key in only)
    }
    found = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for file in weights:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]
