"""`lenvm eval ...`: how good is a value model, and what does steering by it do?"""

from __future__ import annotations

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
