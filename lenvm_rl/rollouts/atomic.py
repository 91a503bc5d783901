"""How does a result appear whole or not at all?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts.writer import RolloutWriter


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it takes the name `path` when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_rollout_file(path: str | os.PathLike[str], **settings: Any) -> Iterator[RolloutWriter]:
    """Yield a `RolloutWriter` whose file gets the name `path` only when the block ends well.

    For files that are derived from others: half of a split or of a conversion must not look done.

    Args:
        path: directory (absent or empty) or `.parquet` file (absent).
        settings: of `RolloutWriter`.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        with RolloutWriter(path, **settings) as writer:
            yield writer
        return
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty directory. Choose another path.")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with RolloutWriter(temporary, **settings) as writer:
            yield writer
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
