"""Cost: requests/s and tokens/s of vLLM with and without guidance, on prompts of real text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from recipes.smollm2.evaluations import needed
from recipes.smollm2.results import Step

SIZE = ("--streams", "1", "4", "16", "--target", "64", "--max-tokens", "128")


def run(
    dir: Path = Path("runs/smollm2"),
    *,
    heads: list[str] | None = None,
    dtype: str = "float32",
    requests: int = 3,
    seed: int = 0,
    record: bool = False,
) -> dict[str, Any]:
    """Time vLLM at 1, 4 and 16 streams: alone, with the exact scorer, with candidate heads.

    Example: `python -m recipes.smollm2 cost --heads runs/smollm2/heads/trunk`

    Args:
        dir: Directory of the recipe's files.
        heads: Candidate heads; repeatable. By default those under DIR/heads.
        dtype: Of policy and value models; cores without bfloat16 units emulate them.
        requests: Responses for every stream.
        record: Write the result into the recipe's own folder.
    """
    step = Step("cost", dir, record, seed)
    policy, lenvm = needed(dir, policy="fetch", lenvm="train")
    [prompts] = needed(dir / "prompts", **{"heldout.jsonl": "sample"})
    found = heads or sorted(str(path.parent) for path in (dir / "heads").glob("*/config.json"))
    words = (
        *("-m", "scripts.bench", "engine", "--policy", policy, "--lenvm", lenvm, *SIZE),
        *(("--heads", *found) if found else ()),
        *("--prompts", prompts, "--dtype", dtype, "--requests", str(requests)),
        *("--seed", str(seed)),
    )
    said = step.run(["python", *words], [sys.executable, *words])
    figures = json.loads(said.strip().rpartition("\n")[2])
    kept = {name: figures[name] for name in ("prompts", "rows", "machine")}
    return step.save({"heads": found, "load": kept.pop("machine"), **kept})
