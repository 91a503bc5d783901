"""`lenvm generate | serve`: a policy steered by a value model, in vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lenvm_rl.cli.app import (
    JsonOption,
    LenvmOption,
    MaxModelLenOption,
    MaxNumSeqsOption,
    OutOption,
    SeedOption,
    app,
)
from lenvm_rl.cli.rendering import ChatTemplateArgs, template_args
from lenvm_rl.cli.sampling import finish, first_of_each_kind

LenvmMemoryOption = Annotated[
    str | None,
    typer.Option(help="Most that the LenVM's keys and values take, e.g. 2GiB; a quarter if unset."),
]
LenvmDtypeOption = Annotated[
    str, typer.Option(help="What it computes in: auto (the policy's), float32, bfloat16, float16.")
]


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")],
    lenvm: LenvmOption,
    out: OutOption,
    prompts: Annotated[
        str | None, typer.Option(help="File, `demo:COUNT`, or a set: `gsm8k@hub:100`.")
    ] = None,
    rollouts: Annotated[
        Path | None, typer.Option(help="Or a rollout file: completes its prompts anew.")
    ] = None,
    equal: Annotated[int | None, typer.Option(help="Tokens that a response shall have.")] = None,
    at_most: Annotated[int | None, typer.Option(help="Tokens that it shall not exceed.")] = None,
    at_least: Annotated[int | None, typer.Option(help="Tokens that it shall reach.")] = None,
    beta: Annotated[float | None, typer.Option(help="Tilt: below 0 shorter, above longer.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor on the expected horizon.")] = None,
    soft: Annotated[bool, typer.Option(help="--equal: sample, with the target as mean.")] = False,
    top_k: Annotated[int, typer.Option(help="Candidates per step.", min=1)] = 20,
    top_p: Annotated[float, typer.Option(help="Candidates: their mass.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Candidates: least relative probability.")] = 0.02,
    n: Annotated[int, typer.Option("-n", help="Completions per prompt.", min=1)] = 1,
    max_tokens: Annotated[int, typer.Option(help="Longest response in tokens.", min=1)] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0)] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Use at most so many prompts.")] = None,
    max_model_len: MaxModelLenOption = None,
    max_num_seqs: MaxNumSeqsOption = None,
    lenvm_memory: LenvmMemoryOption = None,
    lenvm_dtype: LenvmDtypeOption = "auto",
    seed: SeedOption = 0,
    chat_template_args: ChatTemplateArgs = None,
    json_file: JsonOption = None,
) -> None:
    """Complete prompts at a wanted length with vLLM, into a rollout file; resumes where it was
    killed.

    Lengths count response tokens without EOS. The stored log-probabilities are those of the guided
    distribution, and the file's metadata says what guided it.

    Example: `lenvm generate --model demo --lenvm runs/demo/checkpoint/lenvm --prompts demo:50
    --equal 120 --out runs/equal-120`
    """
    from lenvm_rl.demo.prompts import resolve_policy, resolve_prompts
    from lenvm_rl.model import load_tokenizer
    from lenvm_rl.sampling.encoding import tasks_of_prompts
    from lenvm_rl.vllm.generate import generate_to_file
    from lenvm_rl.vllm.generate_run import guidance_of, tasks_of_rollouts
    from lenvm_rl.vllm.options import GuidanceOptions

    if (prompts is None) == (rollouts is None):
        raise ValueError("give exactly one of --prompts and --rollouts.")
    asked = {"equal": equal, "at_most": at_most, "at_least": at_least, "tilt": beta, "scale": scale}
    guidance = guidance_of(asked, soft=soft, top_k=top_k, top_p=top_p, min_p=min_p)
    policy = resolve_policy(model)
    rendering = template_args(chat_template_args)
    if rollouts is not None:
        tasks = tasks_of_rollouts(rollouts, n=n, max_tokens=max_tokens, limit=limit)
    else:
        tokenizer = load_tokenizer(policy, chat_template_args=rendering)
        found = resolve_prompts(prompts or "", seed=seed, limit=limit)
        tasks = tasks_of_prompts(tokenizer, found, n=n, max_tokens=max_tokens)
    failures: dict[str, str] = {}
    done = generate_to_file(
        policy,
        tasks,
        out,
        options=GuidanceOptions(
            checkpoint=str(lenvm),
            max_candidates=max(top_k, 40),
            memory=lenvm_memory,
            dtype=lenvm_dtype,
        ),
        guidance=guidance,
        temperature=temperature,
        seed=seed,
        engine={"max_model_len": max_model_len, "max_num_seqs": max_num_seqs},
        chat_template_args=rendering,
        progress=True,
        on_failure=first_of_each_kind(failures),
    )
    finish(done, failures, json_file)
