"""Trade-off: what following instructions costs in length, beside hard budgets.

The task is IFEval's checkable rules (prompt set and grader `ifeval_rules`); GSM8K is out of this
policy's reach. Prompts that the value model was trained on are left out.

    DIR/prompts/tradeoff.jsonl    the prompts
    DIR/tradeoff                  the evaluation
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lenvm_rl.evals.result import Result
from recipes.smollm2.evaluations import QUALITY, SAMPLING, needed, picked
from recipes.smollm2.results import Step
from recipes.smollm2.sample import places

BETAS = "-100,-50,-25,-12"
COLUMNS = ("length", "accuracy", *QUALITY)


def run(
    dir: Path = Path("runs/smollm2"),
    *,
    place: list[str] | None = None,
    prompts: int = 64,
    n: int = 3,
    max_tokens: int = 512,
    batch_size: int = 64,
    seed: int = 0,
    record: bool = False,
) -> dict[str, Any]:
    """Accuracy against length, guided and truncated; about an hour, and it goes on.

    Example: `python -m recipes.smollm2 tradeoff --place ifeval@data/ifeval.jsonl`

    Args:
        dir: Directory of the recipe's files.
        place: SET@PLACE: where a prompt set lies, if not at its place on the hub; repeatable.
        prompts: Number of prompts.
        max_tokens: Longest response.
        batch_size: Rows generated at once.
        record: Write the result into the recipe's own folder.
    """
    step = Step("tradeoff", dir, record, seed)
    policy, lenvm = needed(dir, policy="fetch", lenvm="train")
    [train] = needed(dir / "prompts", **{"train.jsonl": "sample"})
    asked, out = dir / "prompts" / "tradeoff.jsonl", dir / "tradeoff"
    source = places(place or ()).get("ifeval", "hub")
    step.lenvm(
        *("prompts", "ifeval_rules", "--source", source, "--exclude", train),
        *("--limit", str(prompts), "--seed", str(seed), "--out", asked),
    )
    figures = step.lenvm(
        *("eval", "tradeoff", "--policy", policy, "--lenvm", lenvm, "--prompts", asked),
        *(f"--betas={BETAS}", "-n", str(n), "--max-tokens", str(max_tokens), *SAMPLING),
        *("--batch-size", str(batch_size), "--seed", str(seed), "--out", out),
    )
    tables = Result.load(out / "tradeoff.json").tables
    kept = ("unguided_accuracy", "unguided_length", "half_accuracy_length", "accuracy_kept_there")
    return step.save(
        {
            "task": "ifeval_rules",
            "task_fits": 0.2 <= figures["unguided_accuracy"] <= 0.8,
            "prompts": figures["prompts"],
            **{name: figures[name] for name in kept},
            "guided": picked(tables["guided"], "beta", *COLUMNS, "accuracy_se", "budget_accuracy"),
            "budget": picked(tables["budget"], "budget", *COLUMNS),
        }
    )
