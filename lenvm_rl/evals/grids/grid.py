"""How is a grid of training runs done so that it can be killed at any moment and goes on?

    OUT/data/<fingerprint>/   train and heldout (split by prompt), and one nested subset per size
    OUT/cells/<cell>.json     one finished run, written whole; named by all that determines it
    OUT/cells/<cell>.log      what its process printed

A run whose file is there is not repeated. Runs share OUT when they share their cells: the ablation
takes the scaling's middle run. A killed grid leaves the processes of the runs at hand to end by
themselves; at worst such a run is done twice, with the same result.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lenvm_rl.core import gamma_for_length
from lenvm_rl.evals.grids.cell import Cell, fingerprint
from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.rollouts import RolloutReader, shared_prompts, split_by_prompt
from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.rollouts.columns import list_lengths
from lenvm_rl.rollouts.parts import content_fingerprint, nested_subset
from lenvm_rl.rollouts.progress import progress_bar


class CellsFailed(RuntimeError):
    """Some runs of the grid ended without a result; the message names them and their logs."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Rollouts of one policy, split by prompt, and what a run must know about them."""

    fingerprint: str
    """Of both parts and of how the second is read."""
    folder: Path
    """Holds the subsets."""
    train: Path
    heldout: Path
    heldout_samples: int
    """Completions of each held-out prompt that are judged on."""
    tokenizer: str
    """Directory or hub name of the policy."""
    gamma: float
    """`0.01 ** (1 / p99)` of the training lengths."""
    p99: float
    """99th percentile of the training lengths in tokens."""
    longest_response: int
    longest_sequence: int
    """Prompt and response."""
    share_truncated: float

    def subset(self, prompts: int, samples: int) -> Path:
        """Rollout file of the first so many prompts and samples; made when it is not there."""
        path = self.folder / f"p{prompts}-s{samples}"
        if not path.exists():
            nested_subset(self.train, path, prompts=prompts, samples=samples)
        return path


def prepare_data(
    rollouts: str | Path,
    out: str | Path,
    *,
    policy: str | Path,
    heldout: str | Path | None = None,
    heldout_prompts: int = 200,
    heldout_samples: int = 2,
    seed: int = 0,
) -> Data:
    """Split a rollout file by prompt into OUT/data, once, and read its lengths.

    Args:
        rollouts: completions, several of each prompt.
        policy: directory or hub name of the policy that wrote them.
        heldout: rollout file to judge on, in place of a split.
        heldout_prompts: prompts that the split holds out.
        heldout_samples: completions of each of them that are judged on.
        seed: of the split.
    Raises:
        ValueError: rollouts of another tokenizer than the policy's, or prompts on both sides.
    """
    sha = tokenizer_sha(load_tokenizer(policy))
    RolloutReader(rollouts, tokenizer_sha=sha)
    source = content_fingerprint(rollouts)
    if heldout is None:
        name = f"{source}-{heldout_prompts}-{seed}"
        folder = Path(out) / "data" / name
        train, held = folder / "train", folder / "heldout"
        if not (train.exists() and held.exists()):
            for part in (train, held):  # one without the other is a killed split
                shutil.rmtree(part, ignore_errors=True)
            split_by_prompt(rollouts, train, held, heldout_prompts=heldout_prompts, seed=seed)
    else:
        RolloutReader(heldout, tokenizer_sha=sha)
        if (shared := shared_prompts([rollouts, heldout])) > 0:
            raise ValueError(
                f"{shared} prompts are both in {rollouts} and in {heldout}: what was trained on "
                "cannot be judged on. Leave --heldout out to split by prompt."
            )
        name = f"{source}-{content_fingerprint(heldout)}"
        folder, train, held = Path(out) / "data" / name, Path(rollouts), Path(heldout)
    return Data(
        fingerprint=f"{name}-{heldout_samples}",
        folder=folder,
        train=train,
        heldout=held,
        heldout_samples=heldout_samples,
        tokenizer=str(policy),
        **_lengths(train, held),
    )


class Launcher(Protocol):
    """Does one run and leaves its result at `result`, or raises `CellsFailed`."""

    def __call__(self, cell: Cell, data: Data, *, name: str, result: Path) -> None: ...


def run_grid(
    cells: Iterable[Cell],
    data: Data,
    out: str | Path,
    *,
    jobs: int = 1,
    launcher: Launcher | None = None,
    progress: bool = False,
) -> dict[Cell, dict[str, Any]]:
    """Do every run that has no result yet; returns the results of all.

    Args:
        cells: runs; equal ones are done once.
        data: what they are trained and judged on.
        out: result directory, see the module.
        jobs: processes at once, of one thread each.
        launcher: does the runs one after another in place of processes here.
        progress: draw a bar on stderr.
    Raises:
        CellsFailed: after the others have been done.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}.")
    folder = Path(out) / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    files = {cell: folder / f"{fingerprint(cell, data.fingerprint)}.json" for cell in cells}
    todo = [cell for cell, file in files.items() if not file.is_file()]
    with progress_bar("training runs", len(files), shown=progress) as advance:
        advance(len(files) - len(todo))
        if launcher is None:
            failed = _run_processes(todo, files, data, jobs, advance)
        else:
            failed = _run_launcher(todo, files, data, launcher, advance)
    if failed:
        raise CellsFailed(
            f"{len(failed)} of {len(files)} runs failed; the others are kept, call again to repeat "
            "these.\n" + "\n".join(failed)
        )
    return {cell: json.loads(file.read_text()) for cell, file in files.items()}


def _run_processes(
    todo: Sequence[Cell], files: Mapping[Cell, Path], data: Data, jobs: int, advance: Any
) -> list[str]:
    """At most `jobs` children at once; returns a line about each that failed."""
    waiting = [_write_spec(cell, data, files[cell]) for cell in todo]
    running: dict[subprocess.Popen, Path] = {}
    failed = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                spec = waiting.pop(0)
                running[_start(spec)] = spec
            for child in [child for child in running if child.poll() is not None]:
                spec = running.pop(child)
                result = _result_of(spec)
                if not result.is_file():
                    failed.append(_failure(spec, child.returncode))
                advance(1)
            time.sleep(0.05)
    finally:
        for child in running:
            child.kill()
            child.wait()
    return failed


def _run_launcher(
    todo: Sequence[Cell], files: Mapping[Cell, Path], data: Data, launcher: Launcher, advance: Any
) -> list[str]:
    failed = []
    for cell in todo:
        try:
            launcher(cell, data, name=files[cell].stem, result=files[cell])
        except CellsFailed as error:
            failed.append(str(error))
        advance(1)
    return failed


def _write_spec(cell: Cell, data: Data, result: Path) -> Path:
    """What the child reads."""
    spec = result.with_suffix(".spec")
    content = {
        "fingerprint": result.stem,
        "cell": asdict(cell),
        "run": {
            "train_path": str(data.subset(cell.prompts, cell.samples)),
            "heldout_path": str(data.heldout),
            "heldout_samples": data.heldout_samples,
            "tokenizer_path": data.tokenizer,
            "max_positions": data.longest_sequence,
        },
        "result": str(result),
    }
    with replacing(spec) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")
    return spec


def _start(spec: Path) -> subprocess.Popen:
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with spec.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lenvm_rl.evals.grids.cell", str(spec)],
            env={**os.environ, **one_thread},
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _result_of(spec: Path) -> Path:
    return spec.with_suffix(".json")


def _failure(spec: Path, status: int) -> str:
    log = spec.with_suffix(".log")
    last = (log.read_text(errors="replace").strip().splitlines() or ["nothing printed"])[-1]
    command = shlex.join([sys.executable, "-m", "lenvm_rl.evals.grids.cell", str(spec)])
    return f"  exit status {status}: {last}\n    log: {log}\n    again: {command}"


def _lengths(train: Path, heldout: Path) -> dict[str, Any]:
    """Facts about the lengths of both parts, as fields of `Data`."""
    trained = RolloutReader(train).lengths()
    longest, sequence, truncated, rows = int(trained.max()), 0, 0, 0
    for path in (train, heldout):
        for batch in RolloutReader(path).iter_batches(
            ["prompt_ids", "response_ids", "finish_reason"]
        ):
            lengths = list_lengths(batch.column(1))
            longest = max(longest, int(lengths.max()))
            sequence = max(sequence, int((list_lengths(batch.column(0)) + lengths).max()))
            truncated += batch.column(2).to_pylist().count("length")
            rows += batch.num_rows
    p99 = float(np.quantile(trained, 0.99))
    return {
        "gamma": gamma_for_length(p99),
        "p99": p99,
        "longest_response": longest,
        "longest_sequence": sequence,
        "share_truncated": truncated / rows,
    }
