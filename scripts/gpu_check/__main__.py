"""Runs everything that wants a GPU, section by section; prints one JSON object of what came out.

    scripts/gpu_check.sh --json gpu.json
    scripts/gpu_check.sh --quick --only graphs steps

Every section runs in a process of its own and has a time of its own: one that fails, dies or hangs
says so, and the next one begins. Without a GPU shapes are small: a rehearsal of the code, whose
figures say nothing. The last line of stdout is the JSON object; the exit status is 1 where a
section failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.gpu_check.sections import SECTIONS, Skipped

QUICK_SECONDS = 60
"""Of any section in small shapes."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.section:
        return run_here(args)
    started = time.monotonic()
    found = {name: run_apart(name, args) for name in args.only}
    figures = {
        "bench": "gpu_check",
        "device": args.device,
        "quick": args.quick,
        "seconds": round(time.monotonic() - started, 1),
        "failed": [name for name, x in found.items() if x["status"] in ("failed", "timed out")],
        "sections": found,
    }
    line = json.dumps(figures)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(line + "\n")
    print(line)
    return 1 if figures["failed"] else 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, help="write the last line to this file too")
    add("--quick", action="store_true", help="small shapes; always so without a GPU")
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="these sections")
    add("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    add("--timeout", type=float, help=f"seconds of each section ({QUICK_SECONDS} with --quick)")
    add("--section", choices=SECTIONS, help=argparse.SUPPRESS)  # run it in this process
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device: leave --device out")
    args.quick = args.quick or args.device == "cpu"
    return args


def run_here(args: argparse.Namespace) -> int:
    """One section in this process; its result is the last line of stdout."""
    torch.manual_seed(0)
    try:
        result = {"status": "ok", **SECTIONS[args.section].run(args.device, args.quick)}
    except Skipped as reason:
        result = {"status": "skipped", "reason": str(reason)}
    except Exception as error:
        traceback.print_exc()
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps(result), flush=True)
    return 0


def run_apart(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One section in a process of its own."""
    limit = args.timeout or (QUICK_SECONDS if args.quick else SECTIONS[name].seconds)
    command = [sys.executable, "-m", "scripts.gpu_check", "--section", name]
    command += ["--device", args.device]
    result = last_object_of(command + ["--quick"] * args.quick, limit)
    print(
        f"{name}: {result['status']}, {result['seconds']} s {result.get('reason', '')}",
        file=sys.stderr,
        flush=True,
    )
    return result


def last_object_of(command: Sequence[str], limit: float) -> dict[str, Any]:
    """The JSON object that a command prints last, and its seconds. What it and its children are
    ended with when `limit` seconds are over, or what it died of, is said in its place."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, stdout=output, start_new_session=True)
        try:
            child.wait(limit)
            output.seek(0)
            result = _last_object(output.read()) or {
                "status": "failed",
                "reason": f"the process ended with status {child.returncode} and said nothing",
            }
        except subprocess.TimeoutExpired:
            result = {"status": "timed out", "reason": f"not done after {limit:g} s"}
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def _last_object(text: str) -> dict[str, Any] | None:
    lines = text.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


if __name__ == "__main__":
    sys.exit(main())
