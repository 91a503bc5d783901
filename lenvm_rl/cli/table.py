"""Commands, and what became of old ones: tables that import nothing, so that `lenvm --help` is
quick."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lenvm_rl.evals import EVALUATIONS

_OWN = "lenvm_rl.cli.commands:"


@dataclass(frozen=True)
class Command:
    """Where the function of a command is, and what is not in its signature."""

    function: str
    """`module:function`; `options` reads the options off it."""
    help: str
    by_place: tuple[str, ...] = ()
    """Parameters that are given by their place."""
    as_typed: tuple[str, ...] = ()
    """Words that the function looks up itself, because it records the name."""
    view: str = ""
    """`module:function` that turns the result into what rich prints."""
    passes_on: bool = False
    """Whether options that it does not know go to `extra`."""


@dataclass(frozen=True)
class Answer:
    """What a command has to say."""

    figures: dict[str, Any]
    """The last line, as one JSON object."""
    screen: Any = ""
    """What stands above it: text, or anything that rich prints."""
    complaint: str = ""
    """What went wrong in part: a line on stderr, and exit status 1."""
    warnings: tuple[str, ...] = ()
    """Lines on stderr that change nothing."""
    silent: bool = False
    """Whether the last line is left out, because scripts read what stands on the screen."""


COMMANDS = {
    "demo": Command(_OWN + "demo", "Quick start on a CPU: sample, pretrain, verify, report."),
    "sample": Command(
        "lenvm_rl.cli.sample:sample", "Sample completions into a rollout file, guided or not."
    ),
    "prompts": Command(_OWN + "prompts", "Write a prompt set as a file.", ("name",)),
    "report": Command(_OWN + "report", "Show the lengths of a rollout file.", ("rollouts",)),
    "split": Command(_OWN + "split", "Split a rollout file by unique prompt.", ("rollouts",)),
    "grade": Command(_OWN + "grade", "Keep the correct completions.", ("rollouts",)),
    "segment": Command(
        _OWN + "segment", "Keep the thinking, or the answer, of each response.", ("rollouts",)
    ),
    "convert": Command(
        _OWN + "convert", "Make a rollout file of existing completions.", ("kind", "source")
    ),
    "init": Command(_OWN + "init", "Make an untrained LenVM.", as_typed=("policy", "tokenizer")),
    "import": Command(
        _OWN + "import_", "Convert a checkpoint of the paper's code.", ("checkpoint",), ("policy",)
    ),
    "predict": Command(_OWN + "predict", "Predict lengths of prompts, rollouts or a text."),
    "distill": Command(
        "lenvm_rl.guidance.heads.distill:distill",
        "Distil the exact scorer into a candidate head.",
    ),
    "serve": Command(_OWN + "serve", "Serve a policy with length guidance.", passes_on=True),
    "predictor": Command(
        "lenvm_rl.cli.predictor:predictor", "Answer over HTTP how long responses will be."
    ),
    "route": Command(
        "lenvm_rl.cli.predictor:route", "Put length predictions into requests, before servers."
    ),
    "view": Command(
        "lenvm_rl.pages.view:view",
        "Draw predictions along responses as an HTML page.",
        view="lenvm_rl.pages.view:summary",
    ),
    "recipes": Command(_OWN + "recipes", "List the recipes, or find the folder of one.", ("name",)),
    "eval all": Command(
        "lenvm_rl.cli.eval_all:eval_all",
        "Run all evaluations, small, and write a report.",
        as_typed=("policy",),
    ),
    "eval report": Command(
        "lenvm_rl.pages.report:write_report",
        "Put all results under a directory on one page.",
        ("run",),
        view="lenvm_rl.pages.report:view",
    ),
}
COMMANDS |= {
    f"eval {name}": Command(entry.run, entry.help, view=entry.view)
    for name, entry in EVALUATIONS.items()
}
GROUPS = {
    "": "Length value models: generation length as a value to train, read and steer.",
    "eval": "Measure how good a LenVM is, and what steering by it does.",
}


def imported(place: str) -> Any:
    """What stands at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


# Until version 0.3: old command -> the new one.
GONE: dict[str, str] = {
    "generate": "`lenvm sample --engine vllm --lenvm DIR --equal N`",
    "eval control": "`lenvm eval length-control`",
    "eval lifebench": "`lenvm eval length-control`, which asks LIFEBench's prompts for its targets",
    **{
        f"eval {name}": f"`python -m recipes.paper_grids {name}`, in a clone of the repository"
        for name in ("scaling", "ablation")
    },
}
# Until version 0.3: command -> old option -> the new one, or a sentence.
RENAMED: dict[str, dict[str, str]] = {
    "prompts": {
        "--heldout": "--heldout-fraction",
        "--keep-duplicates": "--duplicates keep",
        "--drop-duplicates": "--duplicates drop",
    },
    "sample": {"--beta": "--tilt"},
    "split": {"--fraction": "--heldout-fraction"},
    "init": {"--from-policy": "--policy", "--target": "--head-target"},
    "import": {"--target": "--head-target"},
    "distill": {"--head": "--student", "--completions": "--batch-size"},
    "serve": {"--model": "--policy"},
    "view": {"--cut": "--truncated"},
    "eval prediction": {"--heldout": "--rollouts"},
    "eval length-control": {"--samples": "-n", "--unguided-samples": "--unguided-n"},
    "eval tradeoff": {"--samples": "-n"},
}
