"""Pages of `lenvm view`: held-out answers of the policy, and thinking answers of the demo policy.

DIR/view/answers.html     one answer of each of ten held-out prompts, mixed over the sources
DIR/view/thinking.html    ten answers of the demo policy, with its own value model
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.smollm2.evaluations import needed
from recipes.smollm2.results import Step


def run(
    dir: Path = Path("runs/smollm2"),
    *,
    answers: int = 10,
    seed: int = 0,
    record: bool = False,
) -> dict[str, Any]:
    """Draw values along real answers, and along the demo policy's.

    Example: `python -m recipes.smollm2 view`

    Args:
        dir: Directory of the recipe's files.
        answers: Responses on each page.
        record: Write the result into the recipe's own folder.
    """
    if answers < 1:
        raise ValueError(f"--answers must be at least 1, got {answers}.")
    step = Step("view", dir, record, seed)
    [lenvm] = needed(dir, lenvm="train")
    [heldout] = needed(dir / "rollouts", heldout="sample")
    thinking = dir / "view" / "thinking"
    step.lenvm(
        *("sample", "--policy", "demo", "--prompts", f"demo:{answers}", "-n", "1"),
        *("--seed", str(seed), "--out", thinking),
    )
    shown = {"answers": (lenvm, heldout), "thinking": ("demo", thinking)}
    return step.save(
        {
            name: step.lenvm(
                *("view", "--lenvm", model, "--rollouts", rollouts, "--per-prompt", "1"),
                *("--limit", str(answers), "--out", dir / "view" / f"{name}.html"),
            )
            for name, (model, rollouts) in shown.items()
        }
    )
