"""`lenvm`: sample completions, look at their lengths, make, train, read and check value models.

Commands parse and call the library; heavy imports happen inside them so that `--help` is quick.
A mistake of the user's ends with one sentence and exit status 2.

    app         the program without its commands
    demo        the main job in one command
    sampling    sample
    rollouts    report, split, convert
    models      init, import, predict
    distill     distill
    guidance    generate, serve
    view        view
    evals       eval prediction, control
    tradeoff    eval tradeoff
    lifebench   eval lifebench
    scaling     eval scaling, ablation
"""

from __future__ import annotations

import sys
from importlib import import_module

from rich.console import Console

from lenvm_rl.cli.app import app

# Importing a module adds its commands; --help lists them in this order.
for _module in (
    "demo",
    "sampling",
    "rollouts",
    "models",
    "distill",
    "guidance",
    "view",
    "evals",
    "tradeoff",
    "lifebench",
    "scaling",
):
    import_module(f"lenvm_rl.cli.{_module}")

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        Console(stderr=True).print("[bold red]error[/]:", str(error), highlight=False, markup=True)
        sys.exit(2)
