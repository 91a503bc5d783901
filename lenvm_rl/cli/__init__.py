"""`lenvm`: sample completions, look at their lengths, make, train, read and check value models.

Commands parse and call the library; heavy imports happen inside them so that `--help` is quick.
A mistake of the user's, or a package that is not installed, ends with one sentence and exit
status 2.

    app         the program without its commands
    missing     which extra brings a package that is not there?
    demo        the main job in one command
    sampling    sample
    prompt_sets prompts
    rollouts    report, split, grade, convert
    models      init, import, predict
    distill     distill
    guidance    generate, serve
    view        view
    evals       eval prediction, control
    tradeoff    eval tradeoff
    lifebench   eval lifebench
    scheduling  eval scheduling
    length_tokens   eval length-tokens
    scaling     eval scaling, ablation
    report      eval report
    eval_all    eval all
    recipes     recipes
"""

from __future__ import annotations

import sys
from importlib import import_module

from lenvm_rl.cli.missing import what_is_missing

# Importing a module adds its commands; --help lists them in this order.
_MODULES = (
    "demo",
    "prompt_sets",
    "sampling",
    "rollouts",
    "models",
    "distill",
    "guidance",
    "view",
    "evals",
    "tradeoff",
    "lifebench",
    "scheduling",
    "length_tokens",
    "scaling",
    "report",
    "eval_all",
    "recipes",
)

__all__ = ["app", "main"]

_absent: ModuleNotFoundError | None = None
try:
    from lenvm_rl.cli.app import app

    for _module in _MODULES:
        import_module(f"lenvm_rl.cli.{_module}")
except ModuleNotFoundError as error:  # a bare install has no typer: `main` says what to do
    if what_is_missing(error) is None:
        raise
    _absent = error


def main() -> None:
    """Entry point of the console script."""
    try:
        if _absent is not None:
            raise _absent
        app()
    except ModuleNotFoundError as error:
        sentence = what_is_missing(error)
        if sentence is None:
            raise
        _fail(sentence)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        _fail(str(error))


def _fail(sentence: str) -> None:
    try:
        from rich.console import Console
        from rich.markup import escape
    except ModuleNotFoundError:
        print("error:", sentence, file=sys.stderr)
    else:
        said = escape(sentence)  # a row or a path may hold square brackets
        Console(stderr=True).print("[bold red]error[/]:", said, highlight=False, soft_wrap=True)
    sys.exit(2)
