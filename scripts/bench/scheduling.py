"""Shortest predicted first on real lengths, between first come first served and perfect knowledge.

    python -m scripts.bench scheduling --data DATA/completions --out runs/scheduling

Answers of large models to GSM8K and MATH problems are split by prompt; a small LenVM is trained on
one side as in real_text.py (minutes, once: it is kept in --out); the answers of the other
side are the requests of a simulated server (`lenvm_rl.evals.scheduling`). Orders by the LenVM stand
beside first come first served, naive predictors and perfect knowledge, at several loads and over
several seeds. The answers come from 45 models whose name is not in the prompt: like a server whose
traffic is mixed, and harder than one policy's own.

With --lenvm and --rollouts (and --train for the naive predictors) another LenVM and its completions
take their place, as in `lenvm eval scheduling`. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lenvm_rl.evals.scheduling import evaluate
from lenvm_rl.evals.scheduling.draw import view
from scripts.bench import harness, real_text
from scripts.bench.harness import CONSOLE, part


@dataclass(frozen=True, kw_only=True)
class Options(evaluate.Settings, harness.Options):
    """What the LenVM is, and the simulated server."""

    data: Path | None = None
    """Folder of the GSM8K and MATH answers."""
    completions: int = 9_000
    """Answers to use."""
    minutes: float = 6.0
    """Most minutes of training."""
    lenvm: Path | None = None
    """In place of --data: directory of a LenVM."""
    rollouts: Path | None = None
    """In place of --data: completions it was not trained on."""
    train: Path | None = None
    """With --lenvm: what it was trained on, for naive predictors."""
    out: Path = Path("runs/scheduling")
    """Results."""
    quick: bool = False
    """Tiny sizes, to see that everything runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.data) == bool(self.lenvm and self.rollouts):
            raise ValueError("give either --data, or --lenvm and --rollouts.")


def run(options: Options) -> dict[str, Any]:
    """A LenVM of the answers, if it is not there yet, and the simulation."""
    if options.quick:
        options = replace(options, requests=60, seeds=2, loads=(1.1,))
    lenvm, train, requests = options.lenvm, options.train, options.rollouts
    if options.data:
        lenvm, train, requests = trained_on(options)
    settings = part(options, evaluate.Settings)
    result = evaluate.run(lenvm, requests, options.out, train=train, settings=settings)
    CONSOLE.print(view(result))
    return result.to_dict()


def trained_on(options: Options) -> tuple[Path, Path, Path]:
    """LenVM, training and held-out rollouts of the answers in --data; made once per --out."""
    lenvm, rollouts = options.out / "completions", options.out / "rollouts"
    if not rollouts.exists():
        work = options.out / "rollouts.tmp"
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir(parents=True)
        text = real_text.Options(
            **{
                name: getattr(options, name)
                for name in ("data", "out", "seed", "completions", "minutes", "quick")
            }
        )
        real_text.run_completions(text.sized(), work)
        os.replace(work, rollouts)  # last: says that the LenVM is there too
    return lenvm, rollouts / "train", rollouts / "heldout"
