"""Checkpoints on disk, written so that a kill at any moment leaves a way back.

    <trainer.default_local_dir>/
      global_step_20/
        critic/                 verl's shards: weights, optimiser, scheduler, random state
        lenvm/                  what LengthValueModel.from_pretrained reads, in training precision
        lenvm_state.json        position in the data, gamma and target of the run
      latest_checkpointed_iteration.txt   written last, by renaming: names a complete step or none
      lenvm -> global_step_20/lenvm       always the newest complete model

Older steps are removed after the pointer has moved, never before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

TRACKER = "latest_checkpointed_iteration.txt"
STATE = "lenvm_state.json"
MODEL = "lenvm"
_STEP = re.compile(r"global_step_(\d+)")


def step_directory(root: Path, step: int) -> Path:
    """Directory of the checkpoint of `step`."""
    return root / f"global_step_{step}"


def find_checkpoint(root: Path, *, mode: str, path: str | None) -> Path | None:
    """The checkpoint to resume from, as `trainer.resume_mode` says; None to start afresh.

    Args:
        root: `trainer.default_local_dir`.
        mode: disable, auto (the newest complete one, if any) or resume_path.
        path: `trainer.resume_from_path`, for resume_path.
    Raises:
        ValueError: an unknown mode, a missing or incomplete checkpoint.
    """
    if mode == "disable":
        return None
    if mode == "resume_path":
        found = Path(path or "").absolute()
        if not path or not _STEP.fullmatch(found.name):
            raise ValueError(
                f"trainer.resume_from_path={path} is not a checkpoint: give a global_step_N "
                "directory."
            )
    elif mode == "auto":
        tracker = root / TRACKER
        if not tracker.is_file():
            return None
        found = step_directory(root, int(tracker.read_text()))
    else:
        raise ValueError(f"trainer.resume_mode must be disable, auto or resume_path; got {mode!r}.")
    if not (found / STATE).is_file():
        raise ValueError(
            f"{found} is not a complete checkpoint of a length value model (no {STATE}). Resume "
            "from another step with trainer.resume_mode=resume_path, or start anew with disable."
        )
    return found


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint directory."""
    match = _STEP.fullmatch(checkpoint.name)
    assert match, checkpoint
    return int(match.group(1))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `complete` stored."""
    return json.loads((checkpoint / STATE).read_text())


def check_workers(checkpoint: Path, workers: int) -> None:
    """Raise ValueError when the shards were written by another number of workers."""
    shards = sorted((checkpoint / "critic").glob("model_world_size_*_rank_0.pt"))
    sizes = [int(shard.name.split("_")[3]) for shard in shards]
    if workers not in sizes:
        raise ValueError(
            f"{checkpoint} was saved by {sizes[0] if sizes else 'no'} worker(s), this run has "
            f"{workers}: verl's shards cannot be cut anew. Resume with that number, or start from "
            f"the model itself: critic.model.path={checkpoint / MODEL} trainer.resume_mode=disable."
        )


def complete(checkpoint: Path, state: dict[str, Any], *, keep: int | None) -> None:
    """Make a written checkpoint the current one, then remove old ones.

    Args:
        checkpoint: directory that holds critic/ and lenvm/.
        state: JSON-able.
        keep: number of checkpoints that stay; None keeps all.
    """
    root = checkpoint.parent
    _write(checkpoint / STATE, json.dumps(state, indent=2) + "\n")
    _write(root / TRACKER, str(step_of(checkpoint)))
    link = root / MODEL
    temporary = root / f"{MODEL}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path(checkpoint.name) / MODEL, target_is_directory=True)
    os.replace(temporary, link)
    for step in _outdated(checkpoint, keep):
        shutil.rmtree(step)


def retire(checkpoint: Path, parts: Sequence[str], *, keep: int | None) -> None:
    """Remove `parts` of the steps before a complete checkpoint, but for the newest.

    Args:
        checkpoint: directory of the newest step.
        parts: names inside a step's directory.
        keep: number of steps that keep them, the newest among them; None keeps all.
    """
    for step in _outdated(checkpoint, keep):
        for part in parts:
            shutil.rmtree(step / part, ignore_errors=True)


def _outdated(checkpoint: Path, keep: int | None) -> list[Path]:
    """The steps before `checkpoint` that are not among the newest `keep`."""
    if keep is None or keep <= 0:
        return []
    steps = [path for path in checkpoint.parent.iterdir() if _STEP.fullmatch(path.name)]
    older = sorted((s for s in steps if step_of(s) < step_of(checkpoint)), key=step_of)
    return older[: max(0, len(older) - keep + 1)]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def resumed_from(config: DictConfig, step: int) -> Path:
    """Directory of the step that verl went on from."""
    trainer = config.trainer
    if trainer.resume_mode == "resume_path":
        return Path(trainer.resume_from_path).absolute()
    return step_directory(Path(trainer.default_local_dir).absolute(), step)
