"""How a benchmark runs: options from a dataclass, tables on stderr, one JSON object last on stdout.

A benchmark is a module of this folder, listed in `NAMES`, with

    Options     a frozen dataclass; its fields are the options, their docstrings the help
    run         options -> figures; a generator yields the figures so far, whole ones last

Beside its figures the JSON object has the benchmark's name, its settings, the machine and the
seconds it took. The exit status is 1 where a figure `passed` is false.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.pool import RunsFailed

NAMES = (
    *("rl", "budgets", "right_answers", "rl_cost", "length_term"),
    *("pretrain", "rollouts", "stream", "sampler", "sampling"),
    *("guidance", "floor", "engine", "exactness", "endurance", "thinking"),
    *("real_text", "error_bars", "rivals", "viewer"),
    *("scheduling", "scheduling_server", "predictor"),
)
CONSOLE = Console(stderr=True, width=None if sys.stderr.isatty() else 160)  # logs hold tables
os.environ.setdefault("MPLBACKEND", "Agg")  # figures are files, with a display or without


class Failed(RuntimeError):
    """What went wrong, said to whoever runs the benchmark."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark takes."""

    json: Path | None = None
    """Write the last line of stdout to this file too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that the first word names; returns the exit status."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(listing())
        return 0
    if name not in NAMES:
        print(f"no benchmark {name!r}: use one of {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    module = importlib.import_module(f"scripts.bench.{name}")
    options = parse(name, words)
    started, figures = time.monotonic(), {}
    try:
        found = module.run(options)
        for figures in found if isinstance(found, Iterator) else [found]:
            line = last_line(name, options, figures, time.monotonic() - started)
            if options.json:
                write_line(options.json, line)
    except (ValueError, FileNotFoundError, Failed, RunsFailed) as error:
        print(error, file=sys.stderr)
        return 1
    print(line)
    return 1 if figures.get("passed") is False else 0


def parse(name: str, words: Sequence[str]) -> Any:
    """The options of a benchmark, as its `Options`."""
    import tyro

    module = importlib.import_module(f"scripts.bench.{name}")
    return tyro.cli(
        module.Options,
        args=list(words),
        prog=f"python -m scripts.bench {name}",
        description=module.__doc__,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )


def listing() -> str:
    """The names of all benchmarks, each with the first line of its docstring."""
    lines = ["python -m scripts.bench NAME [options]; python -m scripts.bench NAME --help\n"]
    for name in NAMES:
        source = Path(__file__).with_name(f"{name}.py").read_text()
        lines.append(f"{name:18}{(ast.get_docstring(ast.parse(source)) or '').splitlines()[0]}")
    return "\n".join(lines)


def last_line(name: str, options: Options, figures: Mapping[str, Any], seconds: float) -> str:
    """The JSON object of a benchmark; None where a number is not finite."""
    from lenvm_rl.rollouts.atomic import finite

    return json.dumps(
        finite(
            {
                "bench": name,
                **figures,
                "settings": {**settings(options), **figures.get("settings", {})},
                "machine": machine(),
                "seconds": round(seconds, 1),
            }
        ),
        allow_nan=False,
    )


def write_line(path: Path, line: str) -> None:
    """The file with this one line, whole or not at all."""
    from lenvm_rl.rollouts.atomic import replacing

    with replacing(path) as file:
        file.write_text(line + "\n")


def settings(options: Any) -> dict[str, Any]:
    """A dataclass as JSON can hold it."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(options).items()
        if key != "json"
    }


def part(options: Any, kind: type) -> Any:
    """The fields that a class, one of those `options` derives from, has."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})


def check_device(device: str) -> None:
    """Refuse a CUDA device where torch finds none.

    Raises:
        ValueError: there is none.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no CUDA device here; use --device cpu")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    torch = sys.modules.get("torch")
    facts: dict[str, Any] = {"load_average": [round(load, 2) for load in os.getloadavg()]}
    if torch is not None:
        facts |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        if torch.cuda.is_initialized():
            facts["gpu"] = torch.cuda.get_device_name()
            facts["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return facts


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """A table on stderr; the first `left` columns are words, the others numbers."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)
