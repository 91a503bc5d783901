"""The recipe's command line: `python -m recipes.smollm2 STEP --help`.

Every step prints the `lenvm` commands that it runs, so that they can be copied, and goes on where
it was stopped. They are meant in this order; each needs only what stands before it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module

from lenvm_rl.cli.options import Mistake, parse
from lenvm_rl.cli.table import Command
from lenvm_rl.rollouts.atomic import write_json
from recipes.smollm2.results import StepFailed

STEPS = {
    "fetch": "get the policy and convert it: DIR/policy",
    "sample": "sample training and held-out rollouts: DIR/rollouts",
    "train": "train a LenVM on the policy's first blocks: DIR/lenvm",
    "heads": "distil candidate heads, and measure what they hold: DIR/heads",
    "prediction": "predictions on held-out prompts, beside baselines: DIR/prediction",
    "control": "ask for lengths, beside baselines and with text quality: DIR/control",
    "tradeoff": "accuracy on instructions against length, beside hard budgets: DIR/tradeoff",
    "cost": "what guidance costs inside vLLM, in requests and tokens a second",
    "view": "draw values along ten answers, and along thinking ones: DIR/view",
}
"""Modules of this folder, each with a function `run`; what they do."""
PROGRAM = "python -m recipes.smollm2"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one step; the last line of stdout is its result as one JSON object."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name not in STEPS:
        print(f"usage: {PROGRAM} STEP --help\n")
        print("\n".join(f"  {step:12s}{what}" for step, what in STEPS.items()))
        sys.exit(0 if name in ("-h", "--help") else 2)
    run = import_module(f"recipes.smollm2.{name}").run
    try:
        arguments, json_file = parse(run, words, f"{PROGRAM} {name}", Command("", ""))
        result = run(**arguments)
    except (Mistake, ValueError, FileNotFoundError, FileExistsError, StepFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, StepFailed) else 2)
    if json_file is not None:
        write_json(json_file, result)
    print(json.dumps(result, allow_nan=False))


if __name__ == "__main__":
    main()
