"""Length control: LIFEBench in tokens, and targets that each prompt's own lengths reach.

    DIR/control/equal    LIFEBench, whose prompts ask for the length in words: equal to 32 ... 512
                         tokens; unguided (so asked), guided, truncated, counting down
    DIR/control/bounds   the same at most and at least, without the countdown, which knows no bounds
    DIR/control/own      held-out prompts of the sampling step, which ask for no length: quantiles
                         .25, .5, .75 of each prompt's own lengths; beside them the length in words.
                         Prompts that the policy leaves open more often than not are passed over:
                         there is no quantile of what does not end (DIR/prompts/control.jsonl)

Tokens are drawn as in the value model's rollouts. Every row has its text quality beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from lenvm_rl.evals.arms import mean
from lenvm_rl.evals.result import Result
from lenvm_rl.prompts.prompt import Prompt, read_prompts, write_prompts
from lenvm_rl.rollouts import RolloutReader
from recipes.smollm2.evaluations import QUALITY, SAMPLING, needed, picked
from recipes.smollm2.results import Step
from recipes.smollm2.sample import places

TARGETS = (32, 64, 128, 256, 512)
COLUMNS = ("control", "method", "completions", "score", "deviation", "failed", "ended", "length")


def run(
    dir: Path = Path("runs/smollm2"),
    *,
    place: list[str] | None = None,
    lifebench: int = 16,
    own: int = 8,
    targets: Sequence[int] = TARGETS,
    max_tokens: int = 1024,
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
        targets: Tokens that LIFEBench's prompts ask for.
        max_tokens: Longest response; above the largest target.
        batch_size: Rows generated at once.
        record: Write the result into the recipe's own folder.
    """
    for name, count in (("lifebench", lifebench), ("own", own)):
        if count < 1:
            raise ValueError(f"--{name} must be at least 1 prompt, got {count}.")
    step = Step("control", dir, record, seed)
    policy, lenvm = needed(dir, policy="fetch", lenvm="train")
    [heldout] = needed(dir / "prompts", **{"heldout.jsonl": "sample"})
    [rollouts] = needed(dir / "rollouts", heldout="sample")
    ordinary = dir / "prompts" / "control.jsonl"
    chosen = that_end(read_prompts(heldout), rollouts, own)
    write_prompts(chosen, ordinary)
    bench = "@".join(filter(None, ["lifebench", places(place or ()).get("lifebench")]))
    fixed = ("--prompts", bench, "--limit", str(lifebench))
    fixed += ("--targets", ",".join(map(str, targets)))
    arms = "unguided,guided,truncated"
    asked = {
        "equal": (*fixed, "--controls", "equal", "--methods", f"{arms},countdown"),
        "bounds": (*fixed, "--controls", "at_most,at_least", "--methods", arms),
        "own": (
            *("--prompts", ordinary, "--quantiles", "0.25,0.5,0.75"),
            *("--unguided-n", "16", "-n", "1", "--prompt-template", " Answer in {target} tokens."),
        ),
    }
    found: dict[str, Any] = {}
    for name, words in asked.items():
        out = dir / "control" / name
        step.lenvm(
            *("eval", "length-control", "--policy", policy, "--lenvm", lenvm, *words, *SAMPLING),
            *("--max-tokens", str(max_tokens), "--batch-size", str(batch_size)),
            *("--grader", "none", "--seed", str(seed), "--out", out),
        )
        found[name] = _figures(Result.load(out / "length_control.json"))
    return step.save(found)


def that_end(prompts: Sequence[Prompt], rollouts: Path, count: int) -> list[Prompt]:
    """The first `count` prompts of which at least half of the completions ended.

    Raises:
        ValueError: there are fewer.
    """
    ended: dict[str, list[bool]] = {}
    columns = ["prompt_id", "finish_reason"]
    for row in cast(Iterator[dict[str, str]], RolloutReader(rollouts).iter_rows(columns)):
        ended.setdefault(row["prompt_id"], []).append(row["finish_reason"] == "stop")
    found = [p for p in prompts if mean(ended.get(p.prompt_id, [])) >= 0.5]
    if len(found) < count:
        raise ValueError(
            f"{rollouts} has {len(found)} prompts of which at least half of the completions ended, "
            f"--own asks for {count}: sample more of them, or ask for fewer."
        )
    return found[:count]


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
