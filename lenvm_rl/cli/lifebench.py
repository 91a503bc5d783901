"""`lenvm eval lifebench`: does a policy write as long as it is asked to?"""

from __future__ import annotations

from typing import Annotated

import typer

from lenvm_rl.cli.app import (
    JsonOption,
    OptionalLenvmOption,
    OutOption,
    SeedOption,
    console,
    emit,
    evals_app,
)
from lenvm_rl.cli.graders import GraderOption, graded
from lenvm_rl.cli.numbers import numbers
from lenvm_rl.cli.rendering import ChatTemplateArgs, template_args
from lenvm_rl.cli.server import ConcurrencyOption, SeedsOption, ServerOption, served

_DEMO_TARGETS = (16, 32, 64, 128)


@evals_app.command("lifebench")
def eval_lifebench(
    policy: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")],
    prompts: Annotated[
        str, typer.Option(help="`lifebench`, `lifebench@FOLDER:COUNT`, a file, or `demo:COUNT`.")
    ],
    out: OutOption,
    lenvm: OptionalLenvmOption = None,
    server: ServerOption = None,
    concurrency: ConcurrencyOption = 64,
    send_seeds: SeedsOption = False,
    controls: Annotated[str, typer.Option(help="Of equal, at_most, at_least.")] = (
        "equal,at_most,at_least"
    ),
    targets: Annotated[
        str | None,
        typer.Option(help="Lengths; `official` is 16 to 8192. Default 32 to 1024; demo 16 to 128."),
    ] = None,
    unit: Annotated[str, typer.Option(help="Of the targets: tokens or words.")] = "tokens",
    methods: Annotated[
        str | None,
        typer.Option(help="Of unguided, guided, cut, countdown. Default all; demo: no countdown."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Words before every prompt.")] = "",
    samples: Annotated[int, typer.Option(help="Completions per prompt and cell.", min=1)] = 1,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest response in tokens; default 4 times the target.")
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
    chat_template_args: ChatTemplateArgs = None,
    json_file: JsonOption = None,
) -> None:
    """LIFEBench in tokens (or words): equal to, at most, at least, beside the baselines.

    The guide gets the control that the prompt asks for. Killed, it goes on where it stopped.

    Example: `lenvm eval lifebench --policy demo --lenvm demo
    --prompts demo:32 --out runs/lifebench`

    Example: `lenvm eval lifebench --policy Qwen/Qwen2.5-7B-Instruct --server http://gpu:8000
    --prompts lifebench --out runs/lifebench`
    """
    from lenvm_rl.demo.prompts import resolve_policy, resolve_prompts
    from lenvm_rl.evals.length_control.lifebench_run import run_lifebench
    from lenvm_rl.evals.length_control.lifebench_settings import (
        METHODS,
        OFFICIAL_TARGETS,
        TARGETS,
        LifebenchSettings,
    )
    from lenvm_rl.evals.length_control.lifebench_view import lifebench_view

    demo = prompts.startswith("demo:")
    if targets is None:
        lengths = _DEMO_TARGETS if demo else TARGETS
    else:
        given = targets == "official"
        lengths = OFFICIAL_TARGETS if given else numbers("--targets", targets, int)
    chosen = methods.split(",") if methods else [m for m in METHODS if not demo or m != "countdown"]
    settings = LifebenchSettings(
        controls=controls.split(","),
        targets=lengths,
        unit=unit,
        methods=chosen,
        prefix=prefix,
        samples=samples,
        max_tokens=max_tokens or max(512, 4 * max(lengths)),
        seed=seed,
        top_k=top_k,
        min_p=min_p,
        short_weight=short_weight,
    )
    found, accepts = graded(grader, resolve_prompts(prompts, seed=seed, limit=limit))
    name, rendering = resolve_policy(policy), template_args(chat_template_args)
    report = run_lifebench(
        name,
        lenvm,
        found,
        out,
        settings=settings,
        grader=accepts,
        server=served(
            server,
            name,
            concurrency=concurrency,
            seeds=send_seeds,
            chat_template_args=rendering,
        ),
        chat_template_args=rendering,
        max_batch=batch_size,
        progress=True,
    )
    console.print(lifebench_view(report))
    emit(report.to_dict(), json_file)
