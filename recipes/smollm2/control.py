"""Length control: LIFEBench in tokens, and targets that each prompt's own lengths reach.

    DIR/control/equal    LIFEBench, whose prompts ask for the length in words: equal to 32 ... 512
                         tokens; unguided (so asked), guided, truncated, counting down
    DIR/control/bounds   the same at most and at least, without the countdown, which knows no bounds
    DIR/control/own      held-out prompts of the sampling step, which ask for no length: quantiles
                         .25, .5, .75 of each prompt's own lengths; beside them the length in words

Tokens are drawn as in the value model's rollouts. Every row has its text quality beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lenvm_rl.evals.result import Result
from recipes.smollm2.evaluations import QUALITY, SAMPLING, needed, picked
from recipes.smollm2.results import Step
from recipes.smollm2.sample import places

TARGETS = (32, 64, 128, 256, 512)
MAX_TOKENS = 1024
COLUMNS = ("control", "method", "completions", "score", "deviation", "failed", "ended", "length")


def run(
    dir: Path = Path("runs/smollm2"),
    *,
    place: list[str] | None = None,
    lifebench: int = 24,
    own: int = 12,
    batch_size: int = 64,
    seed: int = 0,
    record: bool = False,
) -> dict[str, Any]:
    """Ask the guided policy for lengths, beside four baselines; about an hour, and it goes on.

    Example: `python -m recipes.smollm2 control --place lifebench@data/lifebench.jsonl`

    Args:
        dir: Directory of the recipe's files.
        place: SET@PLACE: where a prompt set lies, if not at its place on the hub; repeatable.
        lifebench: Prompts of LIFEBench, English and Chinese as drawn.
        own: Held-out prompts of the sampling step.
        batch_size: Rows generated at once.
        record: Write the result into the recipe's own folder.
    """
    for name, count in (("lifebench", lifebench), ("own", own)):
        if count < 1:
            raise ValueError(f"--{name} must be at least 1 prompt, got {count}.")
    step = Step("control", dir, record, seed)
    policy, lenvm = needed(dir, policy="fetch", lenvm="train")
    [heldout] = needed(dir / "prompts", **{"heldout.jsonl": "sample"})
    bench = "@".join(filter(None, ["lifebench", places(place or ()).get("lifebench")]))
    targets = ("--targets", ",".join(map(str, TARGETS)))
    arms = "unguided,guided,truncated"
    asked = {
        "equal": (
            *("--prompts", bench, "--limit", str(lifebench), *targets),
            *("--controls", "equal", "--methods", f"{arms},countdown"),
        ),
        "bounds": (
            *("--prompts", bench, "--limit", str(lifebench), *targets),
            *("--controls", "at_most,at_least", "--methods", arms),
        ),
        "own": (
            *("--prompts", heldout, "--limit", str(own), "--quantiles", "0.25,0.5,0.75"),
            *("--unguided-n", "16", "-n", "1", "--prompt-template", " Answer in {target} tokens."),
        ),
    }
    found: dict[str, Any] = {}
    for name, words in asked.items():
        out = dir / "control" / name
        step.lenvm(
            *("eval", "length-control", "--policy", policy, "--lenvm", lenvm, *words, *SAMPLING),
            *("--max-tokens", str(MAX_TOKENS), "--batch-size", str(batch_size)),
            *("--grader", "none", "--seed", str(seed), "--out", out),
        )
        found[name] = _figures(Result.load(out / "length_control.json"))
    return step.save(found)


def _figures(result: Result) -> dict[str, Any]:
    """What is kept of an evaluation: scores by control and method, and by target."""
    figures = {name: result.figures[name] for name in ("prompts", "samples", "targets")}
    tables = result.tables
    return {
        **figures,
        "summary": picked(tables["summary"], *COLUMNS, *QUALITY),
        "targets": picked(tables["targets"], *COLUMNS, *QUALITY, "goal"),
        "languages": picked(tables["languages"], "control", "method", "language", "score"),
    }
