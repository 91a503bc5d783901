"""Several evaluations one after another: each once, whatever happens to the others.

Each has a folder of its own, with a stamp that says with which settings it was begun and whether it
ended. A finished one is not run again; one that was killed goes on as its own command would; one
that fails leaves its traceback in `failed.log` and does not stop those after it.
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lenvm_rl.rollouts.atomic import replacing

_STAMP = ".evaluation"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation, ready to run."""

    name: str
    """Its folder; `lenvm eval NAME` runs it alone."""
    settings: dict[str, Any]
    """What its results depend on, as JSON; a finished one with other settings is refused."""
    run: Callable[[Path], None]
    """Writes its results into the folder it is given."""


@dataclass(kw_only=True)
class Outcomes:
    """What became of each evaluation, by name."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Of those that ran to their end now."""
    kept: list[str] = field(default_factory=list)
    """Finished in an earlier run."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reason of each that failed."""

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"seconds": self.seconds, "kept": self.kept, "failed": self.failed}


def run_all(
    evaluations: Iterable[Evaluation],
    out: str | Path,
    *,
    force: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Outcomes:
    """Run those that are not finished.

    Args:
        evaluations: in the order to run them.
        out: directory of their folders.
        force: throw away what earlier runs left of these evaluations, and run them anew.
        tell: gets a line when one begins and when it ends.
    Raises:
        ValueError: before anything runs, a folder has results of other settings, or is not of an
            evaluation at all.
    """
    planned = [(one, Path(out) / one.name) for one in evaluations]
    for one, folder in planned:
        _check(one, folder, force)
    outcomes = Outcomes()
    for one, folder in planned:
        if force and folder.exists():
            shutil.rmtree(folder)
        if (_stamp(folder) or {}).get("finished"):
            outcomes.kept.append(one.name)
            tell(f"{one.name}: finished before, kept")
            continue
        _mark(one, folder, finished=False)
        _run(one, folder, outcomes, tell)
    return outcomes


def _run(one: Evaluation, folder: Path, outcomes: Outcomes, tell: Callable[[str], None]) -> None:
    tell(f"{one.name}: begins")
    log = folder / "failed.log"
    started = time.perf_counter()
    try:
        one.run(folder)
    # Whatever one dies of, the others are still worth having; only an interrupt ends all.
    except Exception as error:
        reason = str(error) or f"{type(error).__name__}"
        outcomes.failed[one.name] = reason
        log.write_text(traceback.format_exc())
        tell(f"{one.name}: FAILED: {reason} (see {log})")
        return
    log.unlink(missing_ok=True)
    outcomes.seconds[one.name] = round(time.perf_counter() - started, 1)
    _mark(one, folder, finished=True)
    tell(f"{one.name}: done in {outcomes.seconds[one.name]:.0f} s")


def _check(one: Evaluation, folder: Path, force: bool) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    stamp = _stamp(folder)
    if stamp is None:
        raise ValueError(
            f"{folder} was not made by this command, and is left alone: choose another --out, or "
            "move it away."
        )
    if not force and stamp["settings"] != json.loads(json.dumps(one.settings)):
        raise ValueError(
            f"{folder} was begun with other settings ({_difference(stamp['settings'], one)}): "
            "choose another --out, or --force to run it anew."
        )


def _difference(old: dict[str, Any], one: Evaluation) -> str:
    keys = [key for key in {**old, **one.settings} if old.get(key) != one.settings.get(key)]
    return ", ".join(f"{key} {old.get(key)}, now {one.settings.get(key)}" for key in keys)


def _stamp(folder: Path) -> dict[str, Any] | None:
    file = folder / _STAMP
    return json.loads(file.read_text()) if file.is_file() else None


def _mark(one: Evaluation, folder: Path, *, finished: bool) -> None:
    with replacing(folder / _STAMP) as file:
        file.write_text(json.dumps({"settings": one.settings, "finished": finished}))
