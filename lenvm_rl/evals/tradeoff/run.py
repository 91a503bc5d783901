"""The trade-off of a policy directory or of a server, resumable: numbers and the figure on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lenvm_rl.evals.outcomes import Grader
from lenvm_rl.evals.source import open_source
from lenvm_rl.evals.tradeoff.evaluate import TradeoffReport, TradeoffSettings, evaluate_tradeoff
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.completion_cache import Generate, kept
from lenvm_rl.sampling.served import ServedSampler


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
    chat_template_args: dict[str, Any] | None = None,
    progress: bool = False,
) -> TradeoffReport:
    """`evaluate_tradeoff` on a directory or a server; writes tradeoff.json, tables, tradeoff.png.

    Completions are kept in `out/completions`: the same call after a kill goes on where it stopped.

    Args:
        policy: directory or hub name; with a server, of its tokenizer.
        lenvm: directory of the value model; not read with a server, which has its own.
        server: samples there instead of here.
        chat_template_args: see `open_source`.
    Raises:
        ValueError: neither a value model nor a server, or see `evaluate_tradeoff`.
    """
    settings = settings or TradeoffSettings()
    folder = Path(out) / "completions"
    source = open_source(
        policy,
        lenvm,
        prompts,
        folder,
        max_tokens=settings.max_tokens,
        top_k=settings.top_k,
        server=server,
        max_batch=max_batch,
        chat_template_args=chat_template_args,
        progress=progress,
    )
    report = evaluate_tradeoff(
        source.generate,
        source.model,
        source.tokenizer,
        prompts,
        grader=grader,
        settings=settings,
        thinking=None if server is None else partial(_thinking, server, folder),
        pictures=server is not None,
        notify=source.notify,
    )
    report.save(out)
    return report


def _thinking(server: ServedSampler, folder: Path, budget: int) -> Generate:
    limited = server.with_fields(thinking_token_budget=budget)
    return kept(limited.generate, folder, identity=limited.identity)
