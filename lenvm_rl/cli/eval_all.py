"""`lenvm eval all`: every evaluation on one policy and its LenVM, then the report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lenvm_rl.cli.app import (
    JsonOption,
    LenvmOption,
    OutOption,
    SeedOption,
    console,
    emit,
    evals_app,
)
from lenvm_rl.cli.evals import eval_control
from lenvm_rl.cli.lifebench import eval_lifebench
from lenvm_rl.cli.scaling import eval_ablation, eval_scaling
from lenvm_rl.cli.tradeoff import eval_tradeoff


def eval_prediction(
    lenvm: Path, rollouts: Path, out: Path, train: Path, policy: str, **sizes: Any
) -> None:
    """As `lenvm eval prediction`."""
    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.evals.prediction.draw import view
    from lenvm_rl.evals.prediction.evaluate import Settings, run

    given = {"train": train, "policy": resolve_policy(policy), "settings": Settings(**sizes)}
    console.print(view(run(lenvm, rollouts, out, **given)))


def eval_scheduling(lenvm: Path, rollouts: Path, out: Path, train: Path, **settings: Any) -> None:
    """As `lenvm eval scheduling`."""
    from lenvm_rl.evals.scheduling.draw import view
    from lenvm_rl.evals.scheduling.evaluate import Settings, run

    result = run(lenvm, rollouts, out, train=train, settings=Settings(**settings))
    console.print(view(result))


def eval_length_tokens(lenvm: Path, rollouts: Path, out: Path, **settings: Any) -> None:
    """As `lenvm eval length-tokens`."""
    from lenvm_rl.evals.length_tokens.draw import view
    from lenvm_rl.evals.length_tokens.evaluate import Settings, run

    console.print(view(run(lenvm, rollouts, out, settings=Settings(**settings))))


NAMES = (
    "prediction",
    "length-tokens",
    "scheduling",
    "tradeoff",
    "control",
    "lifebench",
    "scaling",
    "ablation",
)
# Sizes for 2 cores and the shipped policy. A grid says how a curve is drawn, not yet what it shows.
HELDOUT_PROMPTS, HELDOUT_SAMPLES = 120, 8
TRAIN_PROMPTS, TRAIN_SAMPLES = 460, 4
GRID: dict[str, Any] = {
    "trunk": "1x32",
    "seeds": 1,
    "steps": 150,
    "evaluations": 5,
    "heldout_prompts": 60,
    "jobs": 2,
}
SIZES: dict[str, dict[str, Any]] = {
    "prediction": {"states": 100, "continuations": 24},
    "length-tokens": {},
    "scheduling": {"requests": 600, "seeds": 3},
    "tradeoff": {"prompts": "demo:48", "samples": 4},
    "control": {"prompts": "demo:16", "samples": 2},
    "lifebench": {"prompts": "demo:24"},
    "scaling": {**GRID, "trunks": "1x32,2x64", "prompts": "100,400", "samples": "1,4"},
    "ablation": {**GRID, "parts": "target,gamma", "prompts": 400},
}


@evals_app.command("all")
def eval_all(
    policy: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")],
    lenvm: LenvmOption,
    out: OutOption,
    only: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(NAMES)}; commas between.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Another policy: its prompts with answers, NAME or FILE.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run finished ones again, from nothing.")
    ] = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Run all evaluations, small, and write OUT/report.html.

    A finished evaluation is kept, a killed one goes on, one that fails does not stop the rest
    (exit status 1 at the end).

    Example: `lenvm eval all --policy demo --lenvm demo --out runs/evals`
    """
    from lenvm_rl.evals.run_all import Evaluation, run_all
    from lenvm_rl.pages.report import write_report

    if policy != "demo" and prompts is None:
        raise ValueError(f"--prompts is missing: policy {policy!r} needs prompts with answers.")
    # Progress goes to stderr: stdout has the tables of the evaluations and the object at the end.
    tell = Console(stderr=True, highlight=False, markup=False).print
    runs = _runs(policy, lenvm, prompts, out, seed)
    outcomes = run_all(
        [
            Evaluation(
                name=name,
                settings={
                    "policy": policy,
                    "lenvm": _identity(lenvm),
                    "prompts": prompts,
                    "seed": seed,
                    **SIZES[name],
                },
                run=runs[name],
            )
            for name in _chosen(only)
        ],
        out,
        force=force,
        tell=tell,
    )
    report = write_report(out, out / "report.html")
    tell(f"report: {report['report']}")
    for name, reason in outcomes.failed.items():
        tell(f"FAILED {name}: {reason}")
    emit({**outcomes.to_dict(), "report": report["report"], "broken": report["broken"]}, json_file)
    if outcomes.failed:
        raise typer.Exit(1)


def _chosen(only: str | None) -> list[str]:
    if only is None:
        return list(NAMES)
    asked = only.split(",")
    unknown = [name for name in asked if name not in NAMES]
    if unknown:
        raise ValueError(f"--only {', '.join(unknown)}: there are {', '.join(NAMES)}.")
    return [name for name in NAMES if name in asked]


def _runs(
    policy: str, lenvm: Path, prompts: str | None, out: Path, seed: int
) -> dict[str, Callable[[Path], None]]:
    """Each evaluation as a function of its folder: what `lenvm eval NAME` calls."""
    heldout = partial(_sampled, "heldout", policy, prompts, out / "rollouts", seed)
    train = partial(_sampled, "train", policy, prompts, out / "rollouts", seed)

    def sizes(name: str) -> dict[str, Any]:
        if prompts is None or not str(SIZES[name].get("prompts", "")).startswith("demo:"):
            return SIZES[name]
        return {**SIZES[name], "prompts": "lifebench" if name == "lifebench" else prompts}

    def run(name: str, command: Callable[..., None], **more: Any) -> Callable[[Path], None]:
        def call(folder: Path) -> None:
            files = {key: make() for key, make in more.items()}
            command(out=folder, seed=seed, **files, **sizes(name))

        return call

    def grid(name: str, command: Callable[..., None]) -> Callable[[Path], None]:
        return lambda folder: command(rollouts=train(), out=folder, policy=policy, **SIZES[name])

    given: dict[str, Callable[[], Any]] = {"policy": lambda: policy, "lenvm": lambda: lenvm}
    model = {"lenvm": given["lenvm"]}
    return {
        "prediction": run("prediction", eval_prediction, rollouts=heldout, train=train, **given),
        "length-tokens": run("length-tokens", eval_length_tokens, rollouts=heldout, **model),
        "scheduling": run("scheduling", eval_scheduling, rollouts=heldout, train=train, **model),
        "tradeoff": run("tradeoff", eval_tradeoff, **given),
        "control": run("control", eval_control, **given),
        "lifebench": run("lifebench", eval_lifebench, **given),
        "scaling": grid("scaling", eval_scaling),
        "ablation": grid("ablation", eval_ablation),
    }


def _sampled(part: str, policy: str, prompts: str | None, folder: Path, seed: int) -> Path:
    """A rollout file of prompts to train on, or of others to judge on; sampled when needed."""
    from lenvm_rl.demo.prompts import demo_prompts, resolve_policy, resolve_prompts
    from lenvm_rl.demo.run import heldout_prompts
    from lenvm_rl.sampling.transformers.to_file import sample_to_file

    if prompts is None:
        found = demo_prompts(TRAIN_PROMPTS, seed=seed) if part == "train" else heldout_prompts(seed)
    else:
        found = resolve_prompts(prompts, seed=seed)
        half = len(found) // 2
        found = found[half:] if part == "train" else found[:half]
    most, n = {
        "train": (TRAIN_PROMPTS, TRAIN_SAMPLES),
        "heldout": (HELDOUT_PROMPTS, HELDOUT_SAMPLES),
    }[part]
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
