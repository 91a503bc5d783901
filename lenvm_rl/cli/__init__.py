"""`lenvm`: sample completions, look at their lengths, make, train, read and check value models.

Commands parse and call the library; heavy imports happen inside them so that `--help` is quick.
A mistake of the user's ends with one sentence and exit status 2.

    app         the program without its commands
    demo        the main job in one command
    sampling    sample
    prompt_sets prompts
    rollouts    report, split, convert
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
"""

from __future__ import annotations

import sys
from importlib import import_module

from rich.console import Console
from rich.markup import escape

from lenvm_rl.cli.app import app

# Importing a module adds its commands; --help lists them in this order.
for _module in (
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
):
    import_module(f"lenvm_rl.cli.{_module}")

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        said = escape(str(error))  # a row or a path may hold square brackets
        Console(stderr=True).print("[bold red]error[/]:", said, highlight=False, soft_wrap=True)
        sys.exit(2)
