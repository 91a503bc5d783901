"""Evaluations: numbers from rollout files, saved as JSON and tables, drawn from the numbers.

prediction       how good are the predictions of a LenVM, where, beside which baselines
length_control   does a guided policy end where it is asked to
tradeoff         accuracy against length under guidance
scheduling       what predictions are worth to a server's queue
length_tokens    which words change the expected length
arms             completions of guided evaluations, one rollout file for each method and setting
text_quality     repetition and full sentences of a response
result           figures and tables of one evaluation, and their files
run_all          several evaluations, each once, whatever happens to the others

Each is a folder: `evaluate.py` has `Settings`, `evaluate` (numbers alone), `run` (inputs ->
evaluate -> save -> draw) and `SMALL`; `draw.py` has `draw` (files) and `view` (the terminal). A new
one needs its folder and a line in `EVALUATIONS`.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """Where an evaluation stands, as `module:name`, so that listing them imports nothing."""

    help: str
    """One line."""
    run: str
    """A function of plain arguments and `Settings` that returns a `result.Result`."""
    view: str
    """A function of the result that returns what rich prints."""
    small: str
    """Arguments and settings for a first look: two cores, the demo policy, some minutes."""


def _entry(folder: str, help: str) -> Entry:
    module = f"lenvm_rl.evals.{folder}"
    return Entry(help, f"{module}.evaluate:run", f"{module}.draw:view", f"{module}.evaluate:SMALL")


EVALUATIONS = {
    "prediction": _entry("prediction", "Predicted against measured lengths, beside baselines."),
    "length-tokens": _entry("length_tokens", "Words after which a response gets longer, shorter."),
    "scheduling": _entry("scheduling", "What predictions are worth to a server's queue."),
    "tradeoff": _entry("tradeoff", "Accuracy against length under guidance, beside budgets."),
    "length-control": _entry("length_control", "Asked-for lengths against those that come."),
}
"""Name on the command line -> evaluation, in the order of `lenvm eval all`."""
