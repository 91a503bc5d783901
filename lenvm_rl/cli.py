"""`lenvm`: sample completions, look at their lengths, make, train, read and check value models.

Commands parse and call the library; heavy imports happen inside them so that `--help` is quick.
A mistake of the user's ends with one sentence and exit status 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    name="lenvm",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Length value models: generation length as a value to train, read and steer.",
)
evals_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(evals_app, name="eval", help="Measure how good a LenVM is.")
console = Console()

OutOption = Annotated[Path, typer.Option("--out", help="Directory to write to.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Also write the figures to this file.")
]
GammaOption = Annotated[
    float | None, typer.Option(help="Per-token discount in (0, 1); training can choose it.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        Console(stderr=True).print("[bold red]error[/]:", str(error), highlight=False, markup=True)
        sys.exit(2)


def emit(figures: dict[str, Any], json_file: Path | None) -> None:
    """Print the figures as one JSON object on the last line; write them to a file if asked."""
    text = json.dumps(figures, allow_nan=False)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(text + "\n")
    print(text)


@app.command()
def demo(
    out: OutOption = Path("runs/demo"),
    seed: SeedOption = 0,
    setup_seconds: Annotated[
        float | None, typer.Option(help="Time that set-up took, for the summary.")
    ] = None,
) -> None:
    """Run the main job on a CPU with the shipped policy: sample, pretrain, verify, report.

    Example: `lenvm demo --out runs/demo`
    """
    from lenvm_rl.demo.launch import TrainingFailed
    from lenvm_rl.demo.run import run_demo

    try:
        summary = run_demo(out, seed=seed, setup_s=setup_seconds, console=console)
    except TrainingFailed as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from error
    emit(summary, out / "summary.json")


@app.command()
def sample(
    policy: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")],
    prompts: Annotated[str, typer.Option(help="Prompts: .jsonl or .parquet, or `demo:COUNT`.")],
    out: OutOption,
    n: Annotated[int, typer.Option("-n", help="Completions per prompt.", min=1)] = 8,
    max_tokens: Annotated[int, typer.Option(help="Longest response in tokens.", min=1)] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all tokens.", min=0)] = 0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Rows generated at once.", min=1)] = 128,
    limit: Annotated[int | None, typer.Option(help="Use at most so many prompts.")] = None,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Sample completions into a rollout file with transformers; resumes where it was killed.

    Example: `lenvm sample --policy demo --prompts demo:300 -n 8 --out runs/rollouts`
    """
    from lenvm_rl.demo.prompts import resolve_policy, resolve_prompts
    from lenvm_rl.evals.sampling import sample_to_file

    report = sample_to_file(
        resolve_policy(policy),
        resolve_prompts(prompts, seed=seed, limit=limit),
        out,
        n=n,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        batch_size=batch_size,
        seed=seed,
        progress=True,
    )
    emit(report.to_dict(), json_file)


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
def convert(
    kind: Annotated[str, typer.Argument(help="text, reference or verl: see below.")],
    source: Annotated[Path, typer.Argument(help="JSONL file or directory.")],
    out: OutOption,
    tokenizer: Annotated[str, typer.Option(help="Tokenizer of the policy that wrote them.")],
    raw: Annotated[
        bool, typer.Option(help="text: prompts are raw text, not a user's message.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option(help="Go on after bad rows; they are listed.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Turn completions that are there already into a rollout file.

    `text` reads prompt and completions, `reference` the paper's conversations / meta_info, `verl`
    the dumps of trainer.rollout_data_dir.

    Example: `lenvm convert text answers.jsonl --tokenizer Qwen/Qwen2.5-7B --out runs/rollouts`
    """
    from lenvm_rl import rollouts
    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.model import load_tokenizer, tokenizer_sha

    converters = {
        "text": rollouts.convert_text,
        "reference": rollouts.convert_reference,
        "verl": rollouts.convert_verl,
    }
    if kind not in converters:
        raise ValueError(f"kind must be one of {', '.join(converters)}; got {kind!r}.")
    tokens = load_tokenizer(resolve_policy(tokenizer))
    codec = rollouts.TextCodec.from_tokenizer(tokens, tokenizer_sha=tokenizer_sha(tokens))
    settings: dict[str, Any] = {"errors": "report" if skip_bad else "raise", "progress": True}
    if kind == "text":
        settings["chat"] = not raw
    done = converters[kind](source, out, codec=codec, **settings)
    console.print(done.summary())
    emit(done.to_dict(), json_file)


@app.command()
def init(
    out: OutOption,
    from_policy: Annotated[
        str | None, typer.Option(help="Causal LM whose trunk to start from (or `demo`).")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="For a fresh trunk: whose vocabulary to use.")
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
    )

    if (from_policy is None) == (tokenizer is None):
        raise ValueError(
            "give either --from-policy (start on its trunk) or --tokenizer (fresh trunk), "
            f"got {'both' if from_policy else 'neither'}."
        )
    if freeze_trunk and from_policy is None:
        raise ValueError(
            "--freeze-trunk with --tokenizer would freeze random weights: it is for the policy's "
            "own trunk, give --from-policy."
        )
    torch.manual_seed(seed)
    source = resolve_policy(from_policy or tokenizer or "")
    tokens = load_tokenizer(source)
    if from_policy is not None:
        model = LengthValueModel.from_policy(
            source,
            gamma=gamma,
            target=target,
            head=head,
            frozen_trunk=freeze_trunk,
            policy=describe_policy(from_policy, tokens),
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
    path = save_checkpoint(model, tokens, out)
    emit({"lenvm": str(path), "parameters": model.num_parameters(), "gamma": gamma}, None)


@app.command(name="import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="Trunk plus value_head.safetensors.")],
    out: OutOption,
    gamma: Annotated[float, typer.Option(help="Discount that it was trained with.")],
    target: Annotated[str, typer.Option(help="Target that it was trained with.")] = "return",
    policy: Annotated[str | None, typer.Option(help="Policy whose lengths it predicts.")] = None,
) -> None:
    """Convert a published checkpoint of the paper's code; gamma is stored from then on.

    Example: `lenvm import lenvm-1.5b --gamma 0.997 --out lenvm-qwen2.5-7b-from-1.5b`
    """
    from lenvm_rl.model import import_published, load_tokenizer, save_checkpoint

    model = import_published(checkpoint, gamma=gamma, target=target, policy_name=policy)
    path = save_checkpoint(model, load_tokenizer(checkpoint), out)
    emit({"lenvm": str(path), "parameters": model.num_parameters(), "gamma": gamma}, None)


@app.command()
def predict(
    lenvm: Annotated[Path, typer.Option(help="Directory of the value model.")],
    prompts: Annotated[
        str | None, typer.Option(help="Prompts: .jsonl or .parquet, or `demo:COUNT`.")
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
    seed: SeedOption = 0,
) -> None:
    """Predict lengths: of responses to prompts, or of what is left along given responses.

    Lengths are in tokens, EOS included; being inverted means they lie below the mean length.

    Example: `lenvm predict --lenvm runs/demo/checkpoint/lenvm --text "12 + 7 - 3 = ?"`
    """
    from lenvm_rl.demo.prompts import resolve_prompts
    from lenvm_rl.evals.predict import predict_prompts, predict_rollouts
    from lenvm_rl.rollouts.prompts import Prompt

    if sum(given is not None for given in (prompts, rollouts, text)) != 1:
        raise ValueError("give exactly one of --prompts, --rollouts and --text.")
    if engine not in ("transformers", "vllm"):
        raise ValueError(f"--engine must be transformers or vllm, got {engine!r}.")
    reader = None
    if engine == "vllm":
        from lenvm_rl.vllm.values import EngineReader

        reader = EngineReader(str(lenvm), dtype=dtype)
    if rollouts is not None:
        rows = predict_rollouts(lenvm, rollouts, logits=reader)
    elif text is not None:
        message = [{"role": "user", "content": text}]
        rows = predict_prompts(lenvm, [Prompt(prompt_id="text", messages=message)], logits=reader)
    else:
        asked = resolve_prompts(prompts or "", seed=seed, limit=limit)
        rows = predict_prompts(lenvm, asked, logits=reader)
    _write_lines(rows, out, limit)
    if reader is not None and reader.seconds:
        speed = f"{reader.tokens} tokens in {reader.seconds:.2f} s"
        Console(stderr=True).print(f"{speed}: {reader.tokens / reader.seconds:.0f} tokens/s")


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


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")],
    lenvm: Annotated[Path, typer.Option(help="Directory of the value model.")],
    out: OutOption,
    prompts: Annotated[
        str | None, typer.Option(help="Prompts: .jsonl or .parquet, or `demo:COUNT`.")
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
    seed: SeedOption = 0,
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
    from lenvm_rl.evals.sampling import prompt_row
    from lenvm_rl.model import load_tokenizer
    from lenvm_rl.vllm.generate import generate_to_file
    from lenvm_rl.vllm.generate_run import guidance_of, prompts_of_rollouts
    from lenvm_rl.vllm.options import GuidanceOptions

    if (prompts is None) == (rollouts is None):
        raise ValueError("give exactly one of --prompts and --rollouts.")
    asked = {"equal": equal, "at_most": at_most, "at_least": at_least, "tilt": beta, "scale": scale}
    guidance = guidance_of(asked, soft=soft, top_k=top_k, top_p=top_p, min_p=min_p)
    policy = resolve_policy(model)
    if rollouts is not None:
        rows = list(prompts_of_rollouts(rollouts))[:limit]
    else:
        tokenizer = load_tokenizer(policy)
        found = resolve_prompts(prompts or "", seed=seed, limit=limit)
        rows = [prompt_row(tokenizer, prompt) for prompt in found]
    done = generate_to_file(
        policy,
        rows,
        out,
        options=GuidanceOptions(checkpoint=str(lenvm), max_candidates=max(top_k, 40)),
        guidance=guidance,
        n=n,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    emit(done.to_dict(), json_file)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Policy: directory, hub name, or `demo`.")],
    lenvm: Annotated[Path, typer.Option(help="Directory of the value model.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen.")] = 8000,
    max_num_seqs: Annotated[int, typer.Option(help="Requests that run at once.", min=1)] = 64,
    max_candidates: Annotated[int, typer.Option(help="Most candidates per step.", min=1)] = 40,
) -> None:
    """Serve a policy with length guidance by vLLM; any OpenAI client sends `vllm_xargs`.

    Further options are handed to `vllm serve`.

    Example: `lenvm serve --model demo --lenvm runs/demo/checkpoint/lenvm --max-model-len 512`
    """
    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.vllm.options import GuidanceOptions
    from lenvm_rl.vllm.serve import curl_line, serve_command
    from lenvm_rl.vllm.serve import serve as start

    policy = resolve_policy(model)
    options = GuidanceOptions(checkpoint=str(lenvm.resolve()), max_candidates=max_candidates)
    command = serve_command(
        policy, options, host=host, port=port, max_num_seqs=max_num_seqs, extra=context.args
    )
    console.print("Once it is up, ask for a response of at most 60 tokens:", highlight=False)
    print(curl_line(policy, host=host, port=port))
    start(command, options)


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


GraderOption = Annotated[
    str, typer.Option(help="auto, demo, none, or package.module:function(text, truth) -> bool.")
]


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
    ] = 2.5,
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


def _numbers(option: str, text: str, kind: Any) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas between, got {text!r}.") from None


if __name__ == "__main__":
    main()
