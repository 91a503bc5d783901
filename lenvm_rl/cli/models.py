"""`lenvm init | import | predict`: make value models, and read lengths off them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lenvm_rl.cli.app import GammaOption, LenvmOption, OutOption, SeedOption, app, emit
from lenvm_rl.cli.rendering import ChatTemplateArgs, template_args


@app.command()
def init(
    out: OutOption,
    from_policy: Annotated[
        str | None, typer.Option(help="Causal LM whose trunk to start from (or `demo`).")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Whose vocabulary to use: for a fresh trunk, or for one of its kin."),
    ] = None,
    hidden_size: Annotated[int, typer.Option(help="Fresh trunk: width.", min=8)] = 256,
    layers: Annotated[int, typer.Option(help="Fresh trunk: number of blocks.", min=1)] = 4,
    max_positions: Annotated[int, typer.Option(help="Fresh trunk: longest sequence.")] = 4096,
    architecture: Annotated[str, typer.Option(help="Fresh trunk: model type.")] = "qwen2",
    gamma: GammaOption = None,
    target: Annotated[str, typer.Option(help="What the head predicts.")] = "return",
    head: Annotated[
        str, typer.Option(help="state (the paper's), or candidate: values tokens before they run.")
    ] = "state",
    freeze_trunk: Annotated[
        bool, typer.Option(help="Train the head alone, on the policy's own hidden states.")
    ] = False,
    seed: SeedOption = 0,
) -> None:
    """Make an untrained LenVM: on the trunk of a causal LM, or with a fresh trunk.

    Examples:

    `lenvm init --from-policy Qwen/Qwen2.5-1.5B-Instruct --out lenvm-init`

    `lenvm init --tokenizer Qwen/Qwen2.5-7B --hidden-size 512 --layers 8 --out lenvm-init`

    `lenvm init --from-policy Qwen/Qwen2.5-0.5B
    --tokenizer deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --out lenvm-init`

    `lenvm init --from-policy demo --head candidate --freeze-trunk --out q-head-init`
    """
    import torch

    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.model import (
        LengthValueModel,
        describe_policy,
        from_scratch,
        load_tokenizer,
        save_checkpoint,
        tokens_of_another_meaning,
    )

    if from_policy is None and tokenizer is None:
        raise ValueError(
            "give --from-policy (start on its trunk) or --tokenizer (fresh trunk): got neither."
        )
    if freeze_trunk and (from_policy is None or tokenizer is not None):
        raise ValueError(
            "--freeze-trunk is for the policy's own trunk, with its own tokenizer: a fresh trunk, "
            "or tokens that mean something else to it, must be learnt. Leave out --tokenizer."
        )
    torch.manual_seed(seed)
    figures: dict[str, Any] = {}
    tokens = load_tokenizer(resolve_policy(tokenizer or from_policy or ""))
    if from_policy is not None:
        source = resolve_policy(from_policy)
        model = LengthValueModel.from_policy(
            source,
            gamma=gamma,
            target=target,
            head=head,
            frozen_trunk=freeze_trunk,
            policy=describe_policy(tokenizer or from_policy, tokens),
        )
        if tokenizer is not None:
            figures["tokens_learnt_anew"] = tokens_of_another_meaning(
                tokens, load_tokenizer(source), model.config.vocab_size
            )
    else:
        model = from_scratch(
            tokens,
            hidden_size=hidden_size,
            num_layers=layers,
            max_positions=max_positions,
            architecture=architecture,
            gamma=gamma,
            target=target,
            head=head,
            policy_name=tokenizer or "",
        )
    works = _what_works(model)
    path = save_checkpoint(model, tokens, out)
    figures |= {"parameters": model.num_parameters(), "gamma": gamma, "works": works}
    emit({"lenvm": str(path), **figures}, None)


def _what_works(model: Any) -> dict[str, bool]:
    """What was tried on the trunk; what fails is said on the screen as well."""
    from lenvm_rl.sampling.works import what_works

    found = what_works(model)
    for what, why in found.items():
        if why is not None:
            said = f"{what} will not work: {why}"
            Console(stderr=True).print(said, highlight=False, markup=False, soft_wrap=True)
    return {what: why is None for what, why in found.items()}


@app.command(name="import")
def import_(
    checkpoint: Annotated[
        str, typer.Argument(help="Directory or hub id: a trunk plus value_head.safetensors.")
    ],
    out: OutOption,
    gamma: Annotated[
        float | None,
        typer.Option(help="Discount that it was trained with; published names are known."),
    ] = None,
    target: Annotated[str, typer.Option(help="Target that it was trained with.")] = "return",
    policy: Annotated[
        str | None,
        typer.Option(help="Policy whose lengths it predicts; published names are known."),
    ] = None,
) -> None:
    """Convert a published checkpoint of the paper's code; gamma is stored from then on.

    Examples:

    `lenvm import namezz/lvm-a-qwen2.5-7b-instruct-b-qwen2.5-0.5b-instruct --out lenvm-qwen2.5-7b`

    `lenvm import saves/lenvm-1.5b --gamma 0.997 --policy Qwen/Qwen2.5-7B-Instruct --out lenvm-1.5b`
    """
    from lenvm_rl.model import find_model, import_published, load_tokenizer, save_checkpoint

    model = import_published(checkpoint, gamma=gamma, target=target, policy_name=policy)
    path = save_checkpoint(model, load_tokenizer(find_model(checkpoint)), out)
    figures = {
        "lenvm": str(path),
        "parameters": model.num_parameters(),
        "gamma": model.config.gamma,
        "policy": (model.config.policy or {})["name"],
        "works": _what_works(model),
    }
    emit(figures, None)


@app.command()
def predict(
    lenvm: LenvmOption,
    prompts: Annotated[
        str | None, typer.Option(help="File, `demo:COUNT`, or a set: `gsm8k@hub:100`.")
    ] = None,
    rollouts: Annotated[
        Path | None, typer.Option(help="Or a rollout file: predictions along its responses.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Or one user message.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write JSON lines here, not to the screen.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most so many rows.")] = None,
    engine: Annotated[
        str, typer.Option(help="transformers, or vllm: serve the LenVM as a pooling model.")
    ] = "transformers",
    dtype: Annotated[str, typer.Option(help="vllm: of the trunk; the head is float32.")] = "auto",
    chat_template_args: ChatTemplateArgs = None,
    seed: SeedOption = 0,
) -> None:
    """Predict lengths: of responses to prompts, or of what is left along given responses.

    Lengths are in tokens, EOS included; being inverted means they lie below the mean length.

    Example: `lenvm predict --lenvm runs/demo/checkpoint/lenvm --text "12 + 7 - 3 = ?"`
    """
    from lenvm_rl.demo.prompts import resolve_prompts
    from lenvm_rl.prompts.prompt import Prompt
    from lenvm_rl.sampling.predict import predict_prompts, predict_rollouts

    if sum(given is not None for given in (prompts, rollouts, text)) != 1:
        raise ValueError("give exactly one of --prompts, --rollouts and --text.")
    if engine not in ("transformers", "vllm"):
        raise ValueError(f"--engine must be transformers or vllm, got {engine!r}.")
    rendering = template_args(chat_template_args)
    reader = None
    if engine == "vllm":
        from lenvm_rl.vllm.values import EngineReader

        reader = EngineReader(str(lenvm), dtype=dtype)
    if rollouts is not None:
        rows = predict_rollouts(lenvm, rollouts, logits=reader)
    elif text is not None:
        message = [{"role": "user", "content": text}]
        asked = [Prompt(prompt_id="text", messages=message)]
        rows = predict_prompts(lenvm, asked, logits=reader, chat_template_args=rendering)
    else:
        asked = resolve_prompts(prompts or "", seed=seed, limit=limit)
        rows = predict_prompts(lenvm, asked, logits=reader, chat_template_args=rendering)
    errors: list[str] = []
    _write_lines(_counting(rows, errors), out, limit)
    if reader is not None and reader.seconds:
        speed = f"{reader.tokens} tokens in {reader.seconds:.2f} s"
        Console(stderr=True).print(f"{speed}: {reader.tokens / reader.seconds:.0f} tokens/s")
    if errors:
        said = f"{len(errors)} rows could not be predicted; the first: {errors[0]}"
        Console(stderr=True).print(said, highlight=False, markup=False)
        raise typer.Exit(1)


def _counting(rows: Iterable[dict[str, Any]], errors: list[str]) -> Iterator[dict[str, Any]]:
    """The rows; errors among them are kept."""
    for row in rows:
        if "error" in row:
            errors.append(row["error"])
        yield row


def _write_lines(rows: Any, out: Path | None, limit: int | None) -> None:
    """JSON lines to the screen, or to a file that appears whole or not at all."""
    from itertools import islice

    lines = (json.dumps(row) + "\n" for row in islice(rows, limit))
    if out is None:
        sys.stdout.writelines(lines)
        return
    from lenvm_rl.rollouts.atomic import replacing

    with replacing(out) as temporary, temporary.open("w") as file:
        file.writelines(lines)
