"""`lenvm eval ...`: how good is a value model, and what does steering by it do?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lenvm_rl.cli.app import (
    JsonOption,
    LenvmOption,
    OutOption,
    SeedOption,
    console,
    emit,
    evals_app,
)
from lenvm_rl.cli.graders import GraderOption, graded
from lenvm_rl.cli.numbers import numbers
from lenvm_rl.cli.rendering import ChatTemplateArgs, template_args


@evals_app.command("prediction")
def eval_prediction(
    lenvm: LenvmOption,
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
    any_policy: Annotated[
        bool, typer.Option("--any-policy", help="Accept rollouts of another policy.")
    ] = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Compare predictions with measured lengths: by domain, by position, against naive ones.

    Example: `lenvm eval prediction --lenvm runs/demo/checkpoint/lenvm --policy demo
    --heldout runs/demo/rollouts/heldout --train runs/demo/rollouts/train --out runs/prediction`
    """
    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.evals.prediction.draw import view
    from lenvm_rl.evals.prediction.evaluate import Settings, run

    result = run(
        lenvm,
        heldout,
        out,
        train=train,
        policy=None if policy is None else resolve_policy(policy),
        settings=Settings(states=states, continuations=continuations, seed=seed),
        batch_size=batch_size,
        any_policy=any_policy,
        progress=True,
    )
    console.print(view(result))
    emit(result.to_dict(), json_file)


@evals_app.command("control")
def eval_control(
    policy: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")],
    lenvm: LenvmOption,
    prompts: Annotated[str, typer.Option(help="File, `demo:COUNT`, or a set: `gsm8k@hub:100`.")],
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
    chat_template_args: ChatTemplateArgs = None,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Ask for lengths and see what comes: score, deviation, accuracy, beside the baselines.

    Example: `lenvm eval control --policy demo --lenvm runs/demo/checkpoint/lenvm
    --prompts demo:24 --seed 7 --out runs/control`
    """
    from lenvm_rl.demo.prompts import resolve_policy, resolve_prompts
    from lenvm_rl.evals.guided_runs import run_control
    from lenvm_rl.evals.length_control.control import ControlSettings
    from lenvm_rl.evals.views import control_view

    found, accepts = graded(grader, resolve_prompts(prompts, seed=seed, limit=limit))
    report = run_control(
        resolve_policy(policy),
        lenvm,
        found,
        out,
        grader=accepts,
        settings=ControlSettings(
            controls=controls.split(","),
            quantiles=numbers("--quantiles", quantiles, float),
            targets=None if targets is None else numbers("--targets", targets, int),
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
        chat_template_args=template_args(chat_template_args),
        progress=True,
    )
    console.print(control_view(report))
    emit(report.to_dict(), json_file)
