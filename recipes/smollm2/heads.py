"""Candidate heads: how much of the exact value does a small layer hold, on which states?

A candidate head values every token that could come next off one hidden state (recipes/guidance).
Two are distilled from the LenVM's exact values: on the LenVM's own trunk, which costs that trunk at
every step, and on the policy's last hidden states, which are there anyway; whether 576 numbers that
were made to name the next token hold the length too is what the comparison says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lenvm_rl.model import LengthValueConfig
from recipes.smollm2.results import Step
from recipes.smollm2.train import head_words

KINDS = ("own", "policy")
"""Whose hidden states the head reads."""


def run(
    dir: Path = Path("runs/smollm2"),
    *,
    steps: int = 100,
    seed: int = 0,
    record: bool = False,
) -> dict[str, Any]:
    """Distil DIR/heads/own and DIR/heads/policy from DIR/lenvm; heads that are there are kept.

    Example: `python -m recipes.smollm2 heads`

    Args:
        dir: Directory of the recipe's files.
        steps: Steps of the distillation, of 16 completions each.
        seed: Seed of everything random.
        record: Write the result into the recipe's own folder.
    """
    step = Step("heads", dir, record, seed)
    result: dict[str, Any] = {}
    for kind in KINDS:
        head, predicted = dir / "heads" / kind, dir / "heads" / f"{kind}-prediction"
        if not (head / "config.json").exists():
            student = ("--student", _policy_head(step)) if kind == "policy" else ()
            step.lenvm(
                *("distill", "--lenvm", dir / "lenvm", *student, "--policy", dir / "policy"),
                *("--rollouts", dir / "rollouts" / "fit"),
                *("--val-rollouts", dir / "rollouts" / "validation"),
                *("--steps", str(steps), "--seed", str(seed), "--out", head),
                *("--json", head.with_suffix(".json")),
            )
        distilled = json.loads(head.with_suffix(".json").read_text())
        figures = step.lenvm(
            *("eval", "prediction", "--lenvm", head, "--rollouts", dir / "rollouts" / "heldout"),
            *("--inside", "1", "--seed", str(seed), "--out", predicted),
        )
        names = ("mre_s0", "mre_s0_corrected", "mre_noise_floor", "relative_error_lenvm_50")
        result[kind] = {
            **{name: distilled[name] for name in ("steps", "states", "before", "after")},
            **{name: figures.get(name) for name in names},
        }
    return step.save(result)


def _policy_head(step: Step) -> Path:
    """A fresh candidate head on the policy's frozen states, with the LenVM's gamma."""
    init = step.dir / "init-head"  # beside DIR/heads, whose heads other steps take
    config = LengthValueConfig.from_pretrained(step.dir / "lenvm")
    step.lenvm(
        *("init", "--policy", step.dir / "policy", "--head", "candidate", "--freeze-trunk"),
        *(head_words() if config.length_bins else ()),
        *("--gamma", str(config.require_gamma()), "--seed", str(step.seed), "--out", init),
    )
    return init
