"""`lenvm eval all`: every evaluation on one policy and its LenVM, small, then the report."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lenvm_rl.cli.table import Answer, imported
from lenvm_rl.evals import EVALUATIONS, Entry

# Rollouts for two cores and the demo policy.
HELDOUT_PROMPTS, HELDOUT_N = 120, 8
TRAIN_PROMPTS, TRAIN_N = 460, 4


def eval_all(
    policy: str,
    lenvm: Path,
    out: Path,
    *,
    only: tuple[str, ...] | None = None,
    prompts: str | None = None,
    force: bool = False,
    seed: int = 0,
) -> Answer:
    """Run all evaluations, small, and write OUT/report.html.

    A finished evaluation is kept, a killed one goes on, one that fails does not stop the rest
    (exit status 1 at the end).

    Example: `lenvm eval all --policy demo --lenvm demo --out runs/evals`

    Args:
        out: directory to write to.
        only: names of the evaluations to run (default: all).
        prompts: of another policy than `demo`: a file or set with answers.
        force: run finished ones again, from nothing.
    """
    from rich.console import Console

    from lenvm_rl.evals.run_all import run_all
    from lenvm_rl.pages.report import write_report

    if policy != "demo" and prompts is None:
        raise ValueError(f"--prompts is missing: policy {policy!r} needs prompts with answers.")
    unknown = [name for name in only or () if name not in EVALUATIONS]
    if unknown:
        raise ValueError(f"--only {', '.join(unknown)}: there are {', '.join(EVALUATIONS)}.")
    # Progress goes to stderr: stdout has the tables of the evaluations and the object at the end.
    tell = Console(stderr=True, highlight=False, markup=False).print
    given = {"policy": policy, "lenvm": lenvm, "seed": seed}
    rollouts = partial(_sampled, policy, prompts, out / "rollouts", seed)
    chosen = [
        _planned(name, entry, given, prompts, rollouts)
        for name, entry in EVALUATIONS.items()
        if only is None or name in only
    ]
    outcomes = run_all(chosen, out, force=force, tell=tell)
    report = write_report(out, out / "report.html")
    tell(f"report: {report['report']}")
    figures = {**outcomes.to_dict(), "report": report["report"], "broken": report["broken"]}
    failed = [f"FAILED {name}: {reason}" for name, reason in outcomes.failed.items()]
    return Answer(figures, complaint="\n".join(failed))


def _planned(
    name: str,
    entry: Entry,
    given: Mapping[str, Any],
    prompts: str | None,
    rollouts: Callable[[str], Path],
) -> Any:
    """An evaluation with what it needs: the same as `lenvm eval NAME` with these options."""
    from rich.console import Console

    from lenvm_rl.cli.options import arguments_of
    from lenvm_rl.evals.run_all import Evaluation

    run, small = imported(entry.run), dict(imported(entry.small))
    if prompts is not None and "prompts" in small:
        small["prompts"] = prompts
    # An evaluation that cannot do without rollouts asks for unseen ones.
    reads = inspect.signature(run).parameters.get("rollouts")

    def start(folder: Path) -> None:
        values = {**given, **small, "out": folder}
        if reads is not None and reads.default is inspect.Parameter.empty:
            values |= {"rollouts": rollouts("heldout"), "train": rollouts("train")}
        Console().print(imported(entry.view)(run(**arguments_of(run, values))))

    settings = {**given, "lenvm": _identity(given["lenvm"]), "prompts": prompts, **small}
    return Evaluation(name=name, settings=settings, run=start)


def _sampled(policy: str, prompts: str | None, folder: Path, seed: int, part: str) -> Path:
    """A rollout file of prompts to train on, or of others to judge on; sampled when needed."""
    from lenvm_rl.demo.prompts import demo_prompts, resolve_policy, resolve_prompts
    from lenvm_rl.demo.run import heldout_prompts
    from lenvm_rl.sampling.transformers.engine import sample_to_file

    sizes = {"train": (TRAIN_PROMPTS, TRAIN_N), "heldout": (HELDOUT_PROMPTS, HELDOUT_N)}
    most, n = sizes[part]
    if prompts is None:
        found = demo_prompts(most, seed=seed) if part == "train" else heldout_prompts(seed, most)
    else:
        found = resolve_prompts(prompts, seed=seed)
        half = len(found) // 2
        found = found[half:] if part == "train" else found[:half]
    sample_to_file(
        resolve_policy(policy),
        found[:most],
        folder / part,
        n=n,
        max_tokens=512,
        seed=seed,
        progress=True,
    )
    return folder / part


def _identity(lenvm: Path) -> str:
    """The path, and when its weights were written: another model there is another setting."""
    from datetime import UTC, datetime

    weights = sorted(lenvm.glob("*.safetensors"))
    if not weights:
        raise ValueError(f"{lenvm} holds no *.safetensors: name the directory of a LenVM.")
    written = datetime.fromtimestamp(max(file.stat().st_mtime for file in weights), UTC)
    return f"{lenvm} of {written:%Y-%m-%d %H:%M:%S}"
