"""`lenvm eval tradeoff`: what does a shorter answer cost?"""

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


@evals_app.command("tradeoff")
def eval_tradeoff(
    policy: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")],
    prompts: Annotated[
        str,
        typer.Option(help="`demo:COUNT`, `gsm8k`, `math500@FOLDER:COUNT`, mathvista, or a file."),
    ],
    out: OutOption,
    lenvm: OptionalLenvmOption = None,
    server: ServerOption = None,
    concurrency: ConcurrencyOption = 64,
    send_seeds: SeedsOption = False,
    betas: Annotated[str | None, typer.Option(help="Strengths, e.g. -100,-30,-10,5.")] = None,
    prompt_budgets: Annotated[
        str | None, typer.Option(help="Baseline: budgets asked for in the prompt, e.g. 100,200.")
    ] = None,
    prompt_template: Annotated[
        str, typer.Option(help="How: appended to the user message, with {budget} in it.")
    ] = "\n\nUse at most {budget} tokens.",
    thinking_budgets: Annotated[
        str | None, typer.Option(help="Baseline: vLLM's thinking-token budgets (with --server).")
    ] = None,
    samples: Annotated[int, typer.Option(help="Completions per prompt and beta.", min=1)] = 8,
    max_tokens: Annotated[int, typer.Option(help="Longest response in tokens.", min=1)] = 512,
    grader: GraderOption = "auto",
    top_k: Annotated[int, typer.Option(help="Candidates per step.", min=1)] = 20,
    min_p: Annotated[float, typer.Option(help="Candidates: least relative probability.")] = 0.02,
    batch_size: Annotated[int, typer.Option(help="Rows generated at once.", min=1)] = 64,
    limit: Annotated[int | None, typer.Option(help="Use at most so many prompts.")] = None,
    seed: SeedOption = 0,
    chat_template_args: ChatTemplateArgs = None,
    json_file: JsonOption = None,
) -> None:
    """Accuracy against length: a sweep of beta beside budgets, pass@1 and pass@k.

    Killed, it goes on where it stopped.

    Example: `lenvm eval tradeoff --policy demo --lenvm demo
    --prompts demo:64 --seed 7 --out runs/tradeoff`

    Example: `lenvm eval tradeoff --policy Qwen/Qwen2.5-3B-Instruct --server http://gpu:8000
    --prompts gsm8k --betas=-1000,-100,-50,-20 --max-tokens 2048 --samples 64 --min-p 0.01
    --prompt-budgets 200,300,400 --out runs/gsm8k`
    """
    from lenvm_rl.demo.prompts import resolve_policy, resolve_prompts
    from lenvm_rl.evals.tradeoff.evaluate import BETAS, TradeoffSettings
    from lenvm_rl.evals.tradeoff.run import run_tradeoff
    from lenvm_rl.evals.views import tradeoff_view

    def budgets(option: str, text: str | None) -> list[int]:
        return [] if text is None else numbers(option, text, int)

    settings = TradeoffSettings(
        betas=BETAS if betas is None else numbers("--betas", betas, float),
        prompt_budgets=budgets("--prompt-budgets", prompt_budgets),
        prompt_template=prompt_template,
        thinking_budgets=budgets("--thinking-budgets", thinking_budgets),
        samples=samples,
        max_tokens=max_tokens,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
    )
    found, accepts = graded(grader, resolve_prompts(prompts, seed=seed, limit=limit))
    if accepts is None:
        raise ValueError(
            f"--grader {grader} grades nothing here (data source {found[0].data_source!r}), but "
            "accuracy is half of the trade-off: name a grader, or a function as "
            "package.module:function."
        )
    name, rendering = resolve_policy(policy), template_args(chat_template_args)
    report = run_tradeoff(
        name,
        lenvm,
        found,
        out,
        grader=accepts,
        settings=settings,
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
    console.print(tradeoff_view(report))
    emit(report.to_dict(), json_file)
