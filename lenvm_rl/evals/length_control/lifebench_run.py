"""LIFEBench of a policy directory or of a server, resumable: numbers and the figure on disk.

In this process transformers samples and the LenVM's directory guides; with a server's address both
are the server's, and the policy's name only says which tokenizer encodes the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.evals.length_control.lifebench import evaluate_lifebench
from lenvm_rl.evals.length_control.lifebench_report import LifebenchReport
from lenvm_rl.evals.length_control.lifebench_settings import LifebenchSettings
from lenvm_rl.evals.outcomes import Grader
from lenvm_rl.evals.source import open_source
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.served import ServedSampler


def run_lifebench(
    policy: str | Path,
    lenvm: str | Path | None,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    settings: LifebenchSettings,
    grader: Grader | None = None,
    server: ServedSampler | None = None,
    max_batch: int = 64,
    chat_template_args: dict[str, Any] | None = None,
    progress: bool = False,
) -> LifebenchReport:
    """`evaluate_lifebench` on a directory or a server; writes its files into `out`.

    Completions are kept in `out/completions`: the same call after a kill goes on where it stopped.

    Args:
        policy: directory or hub name; with a server, of its tokenizer.
        lenvm: directory of the value model; not read with a server, which has its own.
        server: samples there instead of here.
        chat_template_args: see `open_source`.
    Raises:
        ValueError: neither a value model nor a server.
    """
    source = open_source(
        policy,
        lenvm,
        prompts,
        Path(out) / "completions",
        max_tokens=settings.max_tokens,
        top_k=settings.top_k,
        server=server,
        max_batch=max_batch,
        chat_template_args=chat_template_args,
        progress=progress,
    )
    report = evaluate_lifebench(
        source.generate,
        source.model,
        source.tokenizer,
        prompts,
        grader=grader,
        settings=settings,
        notify=source.notify,
    )
    if server is not None:
        report.figures["failed_requests"] = dict(server.failures)
    report.save(out)
    return report
