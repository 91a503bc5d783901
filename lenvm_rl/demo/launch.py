"""Runs of `python -m verl.trainer.main_ppo` as a child, with their progress on one line.

verl prints one long line of metrics per step. The whole output goes to a log file; the terminal
shows a bar and the current loss. A child that fails or falls silent ends with the tail of its log.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_STEP = re.compile(r"\bstep:(\d+) - ")


_ENVIRONMENT = {
    # A plugin that fails to load then ends the run; verl only hides failing entry points.
    "VERL_USE_EXTERNAL_MODULES": "lenvm_rl.verl.plugin",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers import torch and verl; on a busy machine that outlasts Ray's 60 seconds.
    "RAY_worker_register_timeout_seconds": "300",
}


class TrainingFailed(RuntimeError):
    """The child failed or fell silent; the message holds the end of its log."""


def recipes_dir() -> Path:
    """Where the recipes are: inside the installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "recipes", package.parent / "recipes"):
        if (place / "pretrain").is_dir():
            return place
    raise FileNotFoundError(
        f"no recipes in {package} or beside it: install the package from a wheel or a clone."
    )


def run_trainer(
    overrides: Sequence[str],
    *,
    config_dir: Path,
    config_name: str,
    log_file: Path,
    steps: int,
    metric: str,
    console: Console,
    silent_after_s: float = 300.0,
) -> None:
    """Run verl's trainer with a recipe and overrides; return when it has finished.

    Args:
        overrides: hydra overrides, `key=value`.
        config_dir, config_name: the recipe.
        log_file: takes everything the child prints.
        steps: number of optimiser steps, for the bar.
        metric: name of the number to show beside the bar.
        silent_after_s: a child that prints nothing for so long is stopped.

    Raises:
        TrainingFailed: see there.
    """
    command = [sys.executable, "-m", "verl.trainer.main_ppo"]
    command += ["--config-path", str(config_dir), "--config-name", config_name, *overrides]
    log_file.parent.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen(
        command,
        env={**_ENVIRONMENT, **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ray's own processes are stopped with it
    )
    tail: deque[str] = deque(maxlen=30)
    alarm = _SilenceAlarm(child, silent_after_s)
    shown = re.compile(re.escape(metric) + r":(\S+)")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    try:
        with log_file.open("w") as log, Progress(*columns, console=console) as progress:
            task = progress.add_task("starting Ray and the critic workers", total=steps)
            assert child.stdout is not None
            for line in child.stdout:
                alarm.reset()
                log.write(line)
                tail.append(line)
                if match := _STEP.search(line):
                    number = shown.search(line)
                    text = f"training, {metric} {float(number[1]):.4f}" if number else "training"
                    progress.update(task, completed=int(match[1]), description=text)
            status = child.wait()
    finally:
        alarm.cancel()
        stop(child)
    if alarm.rang or status != 0:
        reason = f"printed nothing for {silent_after_s:.0f} s" if alarm.rang else f"exit {status}"
        raise TrainingFailed(
            f"pretraining failed ({reason}). The end of {log_file}:\n{''.join(tail)}"
        )


def stop(child: subprocess.Popen) -> None:
    """End the child's whole process group; nothing happens if it is gone."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


class _SilenceAlarm:
    """Stop a child that prints nothing for `seconds`."""

    def __init__(self, child: subprocess.Popen, seconds: float):
        self.rang = False
        self._child, self._seconds = child, seconds
        self._timer: threading.Timer | None = None
        self.reset()

    def reset(self) -> None:
        self.cancel()
        self._timer = threading.Timer(self._seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self.rang = True
        stop(self._child)
