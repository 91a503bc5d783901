"""`lenvm eval ...`: how good is a value model, and what does steering by it do?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lenvm_rl.cli.app import JsonOption, OutOption, SeedOption, console, emit, evals_app

GraderOption = Annotated[
    str, typer.Option(help="auto, demo, none, or package.module:function(text, truth) -> bool.")
]


@evals_app.command("prediction")
def eval_prediction(
    lenvm: Annotated[Path, typer.Option(help="Directory of the value model.")],
    heldout: Annotated[Path, typer.Option(help="Rollouts of unseen prompts, several each.")],
    out: OutOption,
    train: Annotated[
        Path | None, typer.Option(help="Rollouts it was trained on: fits the naive predictors.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Policy of the rollouts: adds Monte Carlo values.")
    ] = None,
    states: Annotated[int, typer.Option(help="States inside responses.", min=2)] = 160,
    continuations: Annotated[int, typer.Option(help="Samples per state.", min=2)] = 32,
    batch_size: Annotated[int, typer.Option(help="Rows generated at once.", min=1)] = 128,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Compare predictions with measured lengths: noise floor, naive predictors, Monte Carlo.

    Example: `lenvm eval prediction --lenvm runs/demo/checkpoint/lenvm --policy demo
    --heldout runs/demo/rollouts/heldout --train runs/demo/rollouts/train --out runs/prediction`
    """
    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.evals.prediction import run_prediction

    result = run_prediction(
        lenvm,
        heldout,
        out,
        train=train,
        policy=None if policy is None else resolve_policy(policy),
        states=states,
        continuations=continuations,
        batch_size=batch_size,
        seed=seed,
        progress=True,
    )
    console.print(result.table())
    emit(result.to_dict(), json_file)


@evals_app.command("control")
def eval_control(
    policy: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")],
    lenvm: Annotated[Path, typer.Option(help="Directory of the value model.")],
    prompts: Annotated[str, typer.Option(help="Prompts: .jsonl or .parquet, or `demo:COUNT`.")],
    out: OutOption,
    controls: Annotated[str, typer.Option(help="Of equal, at_most, at_least.")] = (
        "equal,at_most,at_least"
    ),
    targets: Annotated[
        str | None, typer.Option(help="Tokens for all prompts, e.g. 150,250 (else quantiles).")
    ] = None,
    quantiles: Annotated[
        str, typer.Option(help="Targets: quantiles of each prompt's own lengths.")
    ] = "0.1,0.3,0.5,0.7,0.9",
    samples: Annotated[int, typer.Option(help="Guided completions per target.", min=1)] = 4,
    unguided_samples: Annotated[int, typer.Option(help="Unguided ones per prompt.", min=4)] = 32,
    max_tokens: Annotated[int, typer.Option(help="Longest response in tokens.", min=1)] = 512,
    prompt_template: Annotated[
        str | None, typer.Option(help="Baseline in words, e.g. ' Answer in {target} tokens.'")
    ] = None,
    grader: GraderOption = "auto",
    top_k: Annotated[int, typer.Option(help="Candidates per step.", min=1)] = 20,
    min_p: Annotated[float, typer.Option(help="Candidates: least relative probability.")] = 0.02,
    short_weight: Annotated[
        float, typer.Option(help="equal: cost of a token too few, in tokens too many.")
    ] = 5.0,
    batch_size: Annotated[int, typer.Option(help="Rows generated at once.", min=1)] = 64,
    limit: Annotated[int | None, typer.Option(help="Use at most so many prompts.")] = None,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Ask for lengths and see what comes: score, deviation, accuracy, beside the baselines.

    Example: `lenvm eval control --policy demo --lenvm runs/demo/checkpoint/lenvm
    --prompts demo:24 --seed 7 --out runs/control`
    """
    from lenvm_rl.demo.prompts import resolve_policy, resolve_prompts
    from lenvm_rl.evals.control import ControlSettings
    from lenvm_rl.evals.guided_runs import run_control
    from lenvm_rl.evals.views import control_view

    report = run_control(
        resolve_policy(policy),
        lenvm,
        resolve_prompts(prompts, seed=seed, limit=limit),
        out,
        grader=_grader(grader, policy),
        settings=ControlSettings(
            controls=controls.split(","),
            quantiles=_numbers("--quantiles", quantiles, float),
            targets=None if targets is None else _numbers("--targets", targets, int),
            samples=samples,
            unguided_samples=unguided_samples,
            max_tokens=max_tokens,
            seed=seed,
            prompt_template=prompt_template,
            top_k=top_k,
            min_p=min_p,
            short_weight=short_weight,
        ),
        max_batch=batch_size,
        progress=True,
    )
    console.print(control_view(report))
    emit(report.to_dict(), json_file)


@evals_app.command("tradeoff")
def eval_tradeoff(
    policy: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")],
    lenvm: Annotated[Path, typer.Option(help="Directory of the value model.")],
    prompts: Annotated[str, typer.Option(help="Prompts with answers, or `demo:COUNT`.")],
    out: OutOption,
    betas: Annotated[str | None, typer.Option(help="Strengths, e.g. -100,-30,-10,5.")] = None,
    samples: Annotated[int, typer.Option(help="Completions per prompt and beta.", min=1)] = 8,
    max_tokens: Annotated[int, typer.Option(help="Longest response in tokens.", min=1)] = 512,
    grader: GraderOption = "auto",
    top_k: Annotated[int, typer.Option(help="Candidates per step.", min=1)] = 20,
    min_p: Annotated[float, typer.Option(help="Candidates: least relative probability.")] = 0.02,
    batch_size: Annotated[int, typer.Option(help="Rows generated at once.", min=1)] = 64,
    limit: Annotated[int | None, typer.Option(help="Use at most so many prompts.")] = None,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Accuracy against length: a sweep of beta beside a hard budget on the same prompts.

    Example: `lenvm eval tradeoff --policy demo --lenvm runs/demo/checkpoint/lenvm
    --prompts demo:64 --seed 7 --out runs/tradeoff`
    """
    from lenvm_rl.demo.prompts import resolve_policy, resolve_prompts
    from lenvm_rl.evals.guided_runs import run_tradeoff
    from lenvm_rl.evals.tradeoff import BETAS
    from lenvm_rl.evals.views import tradeoff_view

    accepts = _grader(grader, policy)
    if accepts is None:
        raise ValueError(
            f"--grader {grader} grades nothing, but accuracy is half of the trade-off: name a "
            "function as package.module:function."
        )
    report = run_tradeoff(
        resolve_policy(policy),
        lenvm,
        resolve_prompts(prompts, seed=seed, limit=limit),
        out,
        grader=accepts,
        betas=BETAS if betas is None else _numbers("--betas", betas, float),
        samples=samples,
        max_tokens=max_tokens,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        max_batch=batch_size,
        progress=True,
    )
    console.print(tradeoff_view(report))
    emit(report.to_dict(), json_file)


def _grader(name: str, policy: str) -> Any:
    """What `--grader` names: a function of (text, ground truth), or None."""
    import importlib

    if name == "none" or (name == "auto" and policy != "demo"):
        return None
    if name in ("auto", "demo"):
        from lenvm_rl.demo.task import grade

        return grade
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"--grader {name!r}: give demo, none, or package.module:function, a function of "
            "(response text, ground truth) that returns whether it is right."
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--grader {name!r} cannot be loaded: {error}.") from error


def _numbers(option: str, text: str, kind: Any) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between, got {text!r}.") from None
