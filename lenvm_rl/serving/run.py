"""Either app on a port; SIGTERM and SIGINT let requests that are in flight finish."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from typing import Any

import uvicorn

GRACE = 30  # seconds that requests in flight have to finish


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ValueError: the port is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror or error}.") from error
    return listening


def run(app: Any, listening: socket.socket) -> None:
    """Serve until a signal comes, then until what is in flight has been answered."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        backlog=4096,
        server_header=False,  # the proxy passes on those of the server behind it
        date_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:  # uvloop, if it is there
        runner.run(_serve(uvicorn.Server(config), listening))


async def _serve(server: uvicorn.Server, listening: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    # uvicorn's own handlers raise the signal again at the end, as if it had not been heeded
    server.capture_signals = contextlib.nullcontext  # pyright: ignore[reportAttributeAccessIssue]
    await server.serve(sockets=[listening])
