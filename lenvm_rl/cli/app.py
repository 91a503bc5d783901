"""The `lenvm` program without its commands: what they share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    name="lenvm",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(versions())
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print versions and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Length value models: generation length as a value to train, read and steer."""


def versions() -> str:
    """The version of this package and of those that it rests on, on one line."""
    from importlib.metadata import PackageNotFoundError, version

    from lenvm_rl import __version__

    found = [f"lenvm-rl {__version__}", f"Python {sys.version.split()[0]}"]
    for name in ("torch", "transformers", "verl", "vllm"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


evals_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(evals_app, name="eval", help="Measure how good a LenVM is.")
console = Console()

OutOption = Annotated[Path, typer.Option("--out", help="Directory to write to.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Also write the figures to this file.")
]
GammaOption = Annotated[
    float | None, typer.Option(help="Per-token discount in (0, 1); training can choose it.")
]


def _resolve_lenvm(name: Path | None) -> Path | None:
    from lenvm_rl.model import find_lenvm

    return None if name is None else find_lenvm(name, option="--lenvm")


LenvmOption = Annotated[
    Path,
    typer.Option(
        "--lenvm", help="Value model: directory, hub id, or `demo`.", callback=_resolve_lenvm
    ),
]
OptionalLenvmOption = Annotated[
    Path | None,
    typer.Option(
        "--lenvm",
        help="Value model: directory, hub id, or `demo`; a server has its own.",
        callback=_resolve_lenvm,
    ),
]
MaxModelLenOption = Annotated[
    int | None,
    typer.Option(help="vLLM: longest prompt and response in tokens; what the run needs.", min=1),
]
MaxNumSeqsOption = Annotated[
    int | None, typer.Option(help="vLLM: requests at once; as many as fit.", min=1)
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]


def emit(figures: dict[str, Any], json_file: Path | None) -> None:
    """Print the figures as one JSON object on the last line; write them to a file if asked."""
    text = json.dumps(figures, allow_nan=False)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")
    print(text)
