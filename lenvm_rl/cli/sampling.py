"""`lenvm sample`: completions of prompts, with one of four engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from lenvm_rl.cli.app import (
    JsonOption,
    MaxModelLenOption,
    MaxNumSeqsOption,
    OutOption,
    SeedOption,
    app,
    emit,
)
from lenvm_rl.cli.rendering import (
    ChatTemplateArgs,
    EndTokens,
    ThinkTags,
    tags,
    template_args,
)

if TYPE_CHECKING:
    from lenvm_rl.sampling.fill import SamplingReport
    from lenvm_rl.sampling.run import Failure

_ENGINES = ("transformers", "vllm", "ray", "server")
_ERRORS = Console(stderr=True)


@app.command()
def sample(
    prompts: Annotated[str, typer.Option(help="File, `demo:COUNT`, or a set: `gsm8k@hub:100`.")],
    out: OutOption,
    policy: Annotated[
        str | None, typer.Option(help="Policy: directory, hub name, or `demo`.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="transformers, vllm (this process), ray (many nodes).")
    ] = "transformers",
    server: Annotated[
        str | None, typer.Option(help="Or OpenAI-compatible servers: http://HOST:PORT[,URL2,...].")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model's name at the server; the policy by default.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer for --server; policy or model by default.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Completions per prompt.", min=1)] = 8,
    max_tokens: Annotated[int, typer.Option(help="Longest response in tokens.", min=1)] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all tokens.", min=0)] = 0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    limit: Annotated[int | None, typer.Option(help="Use at most so many prompts.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Completions handed to the engine at once.", min=1)
    ] = None,
    logprobs: Annotated[
        bool, typer.Option(help="vllm, ray: keep log-probabilities (transformers always does).")
    ] = False,
    engine_args: Annotated[
        str, typer.Option(help="vllm, ray: settings of vLLM's LLM as JSON.")
    ] = "{}",
    max_model_len: MaxModelLenOption = None,
    max_num_seqs: MaxNumSeqsOption = None,
    engines: Annotated[int, typer.Option(help="ray: engines over all nodes.", min=1)] = 1,
    ray_address: Annotated[
        str | None, typer.Option(help="ray: cluster; a local one by default.")
    ] = None,
    chat: Annotated[
        bool, typer.Option(help="--server: messages through its template, not token ids.")
    ] = False,
    token_ids: Annotated[
        str, typer.Option(help="--server: `server`, or `text` to make ids from text.")
    ] = "server",
    concurrency: Annotated[int, typer.Option(help="--server: completions in flight.", min=1)] = 256,
    per_request: Annotated[
        int, typer.Option(help="--server: most completions in one request.", min=1)
    ] = 8,
    send_seeds: Annotated[
        bool, typer.Option(help="--server: a seed and a request for each completion.")
    ] = False,
    retries: Annotated[int, typer.Option(help="--server: retries of a request.", min=0)] = 10,
    timeout: Annotated[float, typer.Option(help="--server: seconds for a request.")] = 1800.0,
    chat_template_args: ChatTemplateArgs = None,
    end_token: EndTokens = None,
    think_tags: ThinkTags = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            help="--server: rows of the policy's output layer, if no config.json lies beside its "
            "tokenizer.",
            min=1,
        ),
    ] = None,
    flush_seconds: Annotated[
        float, typer.Option(help="A kill loses at most so much work.", min=0.0)
    ] = 10.0,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Sample completions into a rollout file; the same command goes on where it was killed.

    Engines fill the same file. Completions that could not be made are counted by kind at the end
    (exit status 1); the same command tries them again.

    Example: `lenvm sample --policy demo --prompts demo:300 -n 8 --out runs/rollouts`

    Example: `lenvm sample --server http://a:8000,http://b:8000 --model Qwen/Qwen2.5-7B-Instruct
    --prompts prompts.jsonl -n 16 --max-tokens 5000 --out runs/rollouts`
    """
    from lenvm_rl.demo.prompts import resolve_policy, resolve_prompts

    if server is not None:
        engine = "server"
    if engine not in _ENGINES or (engine == "server") != (server is not None):
        raise ValueError(
            f"engine must be transformers, vllm or ray, or give --server; got {engine!r}."
        )
    if policy is None and (engine != "server" or model is None):
        raise ValueError(f"--policy is missing: {engine} needs it (a server: --policy or --model).")
    named = resolve_policy(policy or model or "")
    found = resolve_prompts(prompts, seed=seed, limit=limit)
    failures: dict[str, str] = {}
    common: dict[str, Any] = {
        "n": n,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "chat_template_args": template_args(chat_template_args),
        "progress": True,
        "flush_seconds": flush_seconds,
        "on_failure": first_of_each_kind(failures),
    }
    if engine != "server" and (end_token or think_tags or vocab_size):
        raise ValueError(
            "--end-token, --think-tags and --vocab-size are for --server: the other engines take "
            "token ids as they are, and the ends from the policy's own files."
        )
    if engine == "server":
        report = _by_servers(
            {
                "servers": [address for address in (server or "").split(",") if address.strip()],
                "model": model or named,
                "chat": chat,
                "token_ids": token_ids,
                "concurrency": concurrency,
                "per_request": per_request,
                "own_seeds": send_seeds,
            },
            {"retries": retries, "timeout": timeout},
            resolve_policy(tokenizer) if tokenizer else named,
            found,
            out,
            {
                **common,
                "end_tokens": end_token or (),
                "reasoning": tags(think_tags),
                "vocab_size": vocab_size,
            },
        )
    elif engine == "transformers":
        from lenvm_rl.sampling.transformers.to_file import sample_to_file

        report = sample_to_file(named, found, out, batch_size=batch_size or 128, **common)
    else:
        chosen = {
            "logprobs": logprobs,
            "batch_size": batch_size or 1024,
            "engine": {
                "max_model_len": max_model_len,
                "max_num_seqs": max_num_seqs,
                **_engine_args(engine_args),
            },
            "ray_engines": engines if engine == "ray" else None,
            "ray_address": ray_address,
        }
        report = _by_vllm(named, found, out, {**common, **chosen})
    finish(report, failures, json_file)


def _by_servers(
    settings: dict[str, Any],
    retry: dict[str, Any],
    tokenizer: str,
    prompts: list[Any],
    out: Path,
    common: dict[str, Any],
) -> SamplingReport:
    from lenvm_rl.sampling.server.engine import ServerSettings
    from lenvm_rl.sampling.server.sampling import sample_from_servers
    from lenvm_rl.sampling.server.servers import RetryPolicy

    return sample_from_servers(
        ServerSettings(**settings, retry=RetryPolicy(**retry)),
        tokenizer,
        prompts,
        out,
        **common,
    )


def _by_vllm(
    policy: str, prompts: list[Any], out: Path, settings: dict[str, Any]
) -> SamplingReport:
    from lenvm_rl.model import load_tokenizer
    from lenvm_rl.sampling.encoding import tasks_of_prompts
    from lenvm_rl.vllm.sample import sample_with_vllm

    tokenizer = load_tokenizer(policy, chat_template_args=settings.pop("chat_template_args"))
    n, max_tokens = settings.pop("n"), settings.pop("max_tokens")
    return sample_with_vllm(
        policy,
        tokenizer,
        tasks_of_prompts(tokenizer, prompts, n=n, max_tokens=max_tokens),
        out,
        **settings,
    )


def finish(report: SamplingReport, examples: dict[str, str], json_file: Path | None) -> None:
    """Print the figures, and what is missing by kind with exit status 1."""
    emit(report.to_dict(), json_file)
    if report.rows_with_unknown_ids:
        _ERRORS.print(
            f"{report.rows_with_unknown_ids} completions hold ids that stand for no token (the "
            "policy samples from the padding of its vocabulary); they are kept.",
            highlight=False,
        )
    if report.rows_missing:
        _ERRORS.print(
            _summary(report.failures, examples, report.rows_missing), highlight=False, markup=False
        )
        raise typer.Exit(1)


def first_of_each_kind(failures: dict[str, str]) -> Callable[[Failure], None]:
    """Keeps an example of every kind."""

    def remember(failure: Failure) -> None:
        failures.setdefault(failure.kind, f"prompt {failure.task.prompt_id!r}: {failure.detail}")

    return remember


def _engine_args(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--engine-args is not JSON ({error}): {text!r}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--engine-args must be a JSON object, got {text!r}.")
    return settings


def _summary(counts: dict[str, int], examples: dict[str, str], missing: int) -> str:
    """Failures by kind, most frequent first, each with its first case."""
    lines = [f"{missing} completions are missing; the same command tries them again."]
    for kind in sorted(counts, key=lambda kind: -counts[kind]):
        lines.append(f"  {counts[kind]:6d}  {kind}  ({examples.get(kind, '')})")
    return "\n".join(lines)
