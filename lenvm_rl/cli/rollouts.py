"""`lenvm report | split | grade | convert`: lengths of rollout files, files made from others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lenvm_rl.cli.app import JsonOption, OutOption, SeedOption, app, console, emit
from lenvm_rl.cli.graders import GraderOption, by_source, row_judge
from lenvm_rl.cli.rendering import (
    ChatTemplateArgs,
    EndTokens,
    ThinkTags,
    tags,
    template_args,
)


@app.command()
def report(
    rollouts: Annotated[Path, typer.Argument(help="Rollout file: .parquet or directory.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Also save JSON, CSV and histogram here.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Show the lengths of a rollout file: percentiles, share cut, and the gamma they suggest.

    Example: `lenvm report runs/rollouts --out runs/rollouts-report`
    """
    from lenvm_rl.rollouts import length_report, report_table

    lengths = length_report(rollouts, progress=True)
    console.print(report_table(lengths))
    if out is not None:
        lengths.save(out)
    emit(lengths.to_dict(), json_file)


@app.command()
def split(
    rollouts: Annotated[Path, typer.Argument(help="Rollout file: .parquet or directory.")],
    train: Annotated[Path, typer.Option(help="Directory for the training side.")],
    heldout: Annotated[Path, typer.Option(help="Directory for the held-out side.")],
    fraction: Annotated[float, typer.Option(help="Share of prompts held out.")] = 0.05,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Split a rollout file by unique prompt, so that no prompt is on both sides.

    Example: `lenvm split runs/rollouts --train runs/train --heldout runs/heldout`
    """
    from lenvm_rl.rollouts import split_by_prompt

    counts = split_by_prompt(rollouts, train, heldout, heldout_fraction=fraction, seed=seed)
    emit(counts.to_dict(), json_file)


@app.command()
def grade(
    rollouts: Annotated[Path, typer.Argument(help="Rollout file: .parquet or directory.")],
    out: OutOption,
    tokenizer: Annotated[str, typer.Option(help="Tokenizer of the policy that wrote them.")],
    grader: GraderOption = "auto",
    json_file: JsonOption = None,
) -> None:
    """Keep the completions that a grader calls right, for a LenVM of right answers.

    What it is for: `lenvm.applies_to=correct` in training, see recipes/grpo_length.

    Example: `lenvm grade runs/train --tokenizer Qwen/Qwen2.5-7B --out runs/train-right`
    """
    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.model import check_tokenizer_sha, load_tokenizer, tokenizer_sha
    from lenvm_rl.rollouts import RolloutReader, keep_correct

    tokens = load_tokenizer(resolve_policy(tokenizer))
    check_tokenizer_sha(
        RolloutReader(rollouts).metadata["tokenizer_sha"],
        tokenizer_sha(tokens),
        expected_of=str(rollouts),
        got_of=f"--tokenizer {tokenizer}",
    )
    kept = keep_correct(
        rollouts,
        out,
        decode=lambda ids: tokens.decode(ids, skip_special_tokens=True),
        judge=row_judge(grader),
        grader_of=by_source if grader == "auto" else lambda source: grader,
        progress=True,
    )
    emit(kept.to_dict(), json_file)


@app.command()
def convert(
    kind: Annotated[str, typer.Argument(help="text, reference or verl: see below.")],
    source: Annotated[Path, typer.Argument(help="JSONL file or directory.")],
    out: OutOption,
    tokenizer: Annotated[str, typer.Option(help="Tokenizer of the policy that wrote them.")],
    raw: Annotated[
        bool, typer.Option(help="text: prompts are raw text, not a user's message.")
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Token limit of their generation (verl: data.max_response_length): tells which "
            "were cut where the source has no finish reason.",
            min=1,
        ),
    ] = None,
    assume_finished: Annotated[
        bool, typer.Option(help="There was no token limit: completions all ended by themselves.")
    ] = False,
    end_token: EndTokens = None,
    think_tags: ThinkTags = None,
    chat_template_args: ChatTemplateArgs = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            help="Go on after bad rows; they are listed. `text` keeps a completion whose end "
            "is unknown as cut."
        ),
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Turn completions that are there already into a rollout file.

    `text` reads prompt and completions, `reference` the paper's conversations / meta_info, `verl`
    the dumps of trainer.rollout_data_dir, which do not say how a response ended: give --max-tokens.

    Example: `lenvm convert text answers.jsonl --tokenizer Qwen/Qwen2.5-7B --out runs/rollouts`
    """
    from lenvm_rl import rollouts
    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.model import load_tokenizer, tokenizer_sha
    from lenvm_rl.model.policy_facts import policy_configs
    from lenvm_rl.model.tokens import token_ids_of

    converters = {
        "text": rollouts.convert_text,
        "reference": rollouts.convert_reference,
        "verl": rollouts.convert_verl,
    }
    if kind not in converters:
        raise ValueError(f"kind must be one of {', '.join(converters)}; got {kind!r}.")
    if max_tokens is not None and assume_finished:
        raise ValueError("--max-tokens and --assume-finished contradict each other: give one.")
    name = resolve_policy(tokenizer)
    tokens = load_tokenizer(name, chat_template_args=template_args(chat_template_args))
    facts = policy_configs(name)
    codec = rollouts.TextCodec.from_tokenizer(
        tokens,
        tokenizer_sha=tokenizer_sha(tokens),
        end_ids=token_ids_of(tokens, end_token or ()),
        generation=facts.generation,
        config=facts.config,
        chat=not raw,
        reasoning=tags(think_tags),
    )
    settings: dict[str, Any] = {
        "errors": "report" if skip_bad else "raise",
        "assume_finished": assume_finished,
        "progress": True,
    }
    if kind == "reference":
        settings["max_tokens"] = max_tokens
    else:
        settings["sampling"] = {"max_tokens": max_tokens}
    if kind == "text":
        settings["chat"] = not raw
    done = converters[kind](source, out, codec=codec, **settings)
    console.print(done.summary(), markup=False, highlight=False)  # rows may hold square brackets
    emit(done.to_dict(), json_file)
