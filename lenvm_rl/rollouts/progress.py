"""A bar that shows how far long work is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, total: int | None, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the block runs; yields `advance(steps)`, which does nothing if hidden.

    Args:
        label: what is being done.
        total: steps in all, None when unknown.
        shown: whether to draw it (needs rich).
    """
    if not shown:
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda steps: bar.advance(task, steps)
