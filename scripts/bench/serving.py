"""vLLM of a benchmark: a server on a free port, waited for, ended; the end of an engine."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from scripts.bench.harness import CONSOLE, Failed

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(
    command: Callable[[int], Sequence[str]], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen]]:
    """Address and process of the server that `command(port)` starts; it ends with the block.

    Raises:
        Failed: /health never answers; with the end of the log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A console script does not see the folder it starts in, and verl brings a package `scripts`.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, **(environment or {})}
    with log.open("w") as out:
        process = subprocess.Popen(command(port), stdout=out, stderr=out, env=env)
    base = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(base, process, log)
        yield base, process
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(base: str, process: subprocess.Popen, log: Path) -> None:
    started = time.monotonic()
    while time.monotonic() - started < 300 and process.poll() is None:
        try:
            if httpx.get(base + "/health").status_code == 200:
                CONSOLE.print(f"server is up after {time.monotonic() - started:.0f} s")
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise Failed(f"the server did not start:\n{log.read_text()[-3000:]}")


def stop(engine: Any) -> None:
    """End an engine and its processes."""
    engine.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
