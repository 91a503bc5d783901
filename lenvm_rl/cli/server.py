"""`--server`: an evaluation that samples from a running server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

ServerOption = Annotated[
    str | None,
    typer.Option(help="Address of a `lenvm serve` server that samples, e.g. http://host:8000."),
]
ConcurrencyOption = Annotated[
    int, typer.Option(help="Requests to the server under way at once.", min=1)
]


SeedsOption = Annotated[
    bool, typer.Option(help="Send the server a seed with every request (not to vLLM on a CPU).")
]


def served(
    url: str | None,
    policy: str,
    *,
    concurrency: int,
    seeds: bool,
    chat_template_args: dict[str, Any] | None = None,
) -> Any:
    """The server's sampler with the tokenizer of `policy`; None without an address.

    Raises:
        ValueError: nothing answers there.
    """
    if url is None:
        return None
    from lenvm_rl.sampling.served import ServedPolicy, ServedSampler

    server = ServedPolicy(
        url, concurrency=concurrency, seeds=seeds, chat_template_args=chat_template_args
    )
    return ServedSampler(server, policy, progress=True)
