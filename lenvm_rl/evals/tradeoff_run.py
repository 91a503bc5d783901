"""The trade-off of a policy directory or of a server, resumable: numbers and the figure on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lenvm_rl.evals.completion_cache import Generate, kept, lenvm_identity
from lenvm_rl.evals.guided_runs import GuidedPolicy, longest_prompt
from lenvm_rl.evals.outcomes import Grader
from lenvm_rl.evals.served import ServedSampler
from lenvm_rl.evals.tradeoff import TradeoffReport, TradeoffSettings, evaluate_tradeoff
from lenvm_rl.rollouts.prompts import Prompt


def run_tradeoff(
    policy: str | Path,
    lenvm: str | Path | None,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    grader: Grader,
    settings: TradeoffSettings | None = None,
    server: ServedSampler | None = None,
    max_batch: int = 64,
    progress: bool = False,
) -> TradeoffReport:
    """`evaluate_tradeoff` on a directory or a server; writes tradeoff.json, tables, tradeoff.png.

    Completions are kept in `out/completions`: the same call after a kill goes on where it stopped.

    Args:
        policy: directory or hub name; with a server, of its tokenizer.
        lenvm: directory of the value model; not read with a server, which has its own.
        server: samples there instead of here.
    Raises:
        ValueError: neither a value model nor a server, or see `evaluate_tradeoff`.
    """
    settings = settings or TradeoffSettings()
    folder = Path(out) / "completions"
    thinking: Callable[[int], Generate] | None = None
    if server is not None:
        generate = kept(server.generate, folder, identity=server.identity)
        model, tokenizer, notify = None, server.tokenizer, server.name_next
        thinking = partial(_thinking, server, folder)
    elif lenvm is not None:
        guided = GuidedPolicy(
            policy,
            lenvm,
            max_length=longest_prompt(policy, prompts) + settings.max_tokens,
            max_batch=max_batch,
            top_k=settings.top_k,
            progress=progress,
        )
        identity = {"policy": str(policy), **lenvm_identity(lenvm)}
        generate = kept(guided.generate, folder, identity=identity)
        model, tokenizer, notify = guided.model, guided.tokenizer, guided.name_next
    else:
        raise ValueError(
            "there is nothing to guide by: name the value model's directory (--lenvm), or a "
            "server that has one (--server)."
        )
    report = evaluate_tradeoff(
        generate,
        model,
        tokenizer,
        prompts,
        grader=grader,
        settings=settings,
        thinking=thinking,
        pictures=server is not None,
        notify=notify,
    )
    report.save(out)
    return report


def _thinking(server: ServedSampler, folder: Path, budget: int) -> Generate:
    limited = server.with_fields(thinking_token_budget=budget)
    return kept(limited.generate, folder, identity=limited.identity)
