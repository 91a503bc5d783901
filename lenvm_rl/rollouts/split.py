"""Which prompts are held out, so that nothing of them is seen in training?

The side of a row depends on the content of its prompt alone: prompts are ordered by a keyed hash of
their token ids, and the first so many are held out. Rows of equal prompts land on the same side
whatever their `prompt_id`, in whatever order and in how many files they come.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lenvm_rl.rollouts.atomic import whole_rollout_file
from lenvm_rl.rollouts.columns import row_digests
from lenvm_rl.rollouts.distinct import DistinctDigests
from lenvm_rl.rollouts.layout import DERIVED_METADATA
from lenvm_rl.rollouts.progress import progress_bar
from lenvm_rl.rollouts.reader import RolloutReader


@dataclass(frozen=True)
class SplitReport:
    """What a split put where. Prompts are counted by content."""

    train_rows: int
    train_prompts: int
    heldout_rows: int
    heldout_prompts: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        return asdict(self)


def split_by_prompt(
    path: str | os.PathLike[str],
    out_train: str | os.PathLike[str],
    out_heldout: str | os.PathLike[str],
    *,
    heldout_fraction: float | None = None,
    heldout_prompts: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SplitReport:
    """Split a rollout file into two by unique prompt, in two passes over it.

    Exact repetitions of a completion stay: a policy that says the same twice is data, and both
    copies are on one side (`find_duplicates` counts them). Memory is a few times 8 bytes per unique
    prompt.

    Args:
        path: rollout file or directory.
        out_train, out_heldout: where the two parts go; neither may exist. They appear when whole.
        heldout_fraction: share of the unique prompts to hold out, in (0, 1), rounded to whole
            prompts.
        heldout_prompts: or their number, at least 1.
        seed: another seed holds out other prompts.
        progress: show bars.
    Raises:
        ValueError: not exactly one of the two sizes; a size that leaves a side empty; equal paths.
    """
    _check_sizes(heldout_fraction, heldout_prompts)
    places = [Path(place).resolve() for place in (path, out_train, out_heldout)]
    if len(set(places)) < 3:
        raise ValueError(f"input and the two outputs must differ, got {[str(p) for p in places]}.")
    reader = RolloutReader(path)
    digests = _prompt_digests(reader, _key(seed), progress)
    count = _heldout_count(len(digests), heldout_fraction, heldout_prompts, str(path))
    last = digests[count - 1]
    rows = {True: 0, False: 0}
    settings = {key: reader.metadata[key] for key in DERIVED_METADATA if key in reader.metadata}
    with (
        whole_rollout_file(out_train, **settings) as train,
        whole_rollout_file(out_heldout, **settings) as heldout,
        progress_bar("writing both parts", len(reader), shown=progress) as advance,
    ):
        for batch in reader.iter_batches():
            out = row_digests(batch.column("prompt_ids"), key=_key(seed)) <= last
            for side, writer in ((True, heldout), (False, train)):
                part = batch.filter(pa.array(out == side))
                rows[side] += part.num_rows
                if part.num_rows:
                    writer.append_batch(part, media=reader.media)
            advance(batch.num_rows)
    return SplitReport(
        train_rows=rows[False],
        train_prompts=len(digests) - count,
        heldout_rows=rows[True],
        heldout_prompts=count,
        seed=seed,
    )


def shared_prompts(paths: Sequence[str | os.PathLike[str]]) -> int:
    """Number of prompts, by content, that occur in more than one of the rollout files.

    Zero for the two outputs of `split_by_prompt`; use it to check files that were split elsewhere.
    """
    readers = [RolloutReader(path) for path in paths]
    for reader in readers[1:]:
        if reader.metadata["tokenizer_sha"] != readers[0].metadata["tokenizer_sha"]:
            raise ValueError(
                f"{readers[0].path} and {reader.path} are of different tokenizers: equal prompts "
                "have different ids, so contents cannot be compared."
            )
    found = [_prompt_digests(reader, b"", False) for reader in readers]
    _, counts = np.unique(np.concatenate(found), return_counts=True)
    return int((counts > 1).sum())


def _key(seed: int) -> bytes:
    return f"split-{seed}".encode()


def _prompt_digests(reader: RolloutReader, key: bytes, progress: bool) -> np.ndarray:
    """Sorted distinct digests of all prompts, [P] uint64."""
    distinct = DistinctDigests()
    with progress_bar("reading prompts", len(reader), shown=progress) as advance:
        for batch in reader.iter_batches(["prompt_ids"]):
            distinct.add(row_digests(batch.column(0), key=key))
            advance(batch.num_rows)
    return distinct.values()


def _check_sizes(fraction: float | None, prompts: int | None) -> None:
    if (fraction is None) == (prompts is None):
        raise ValueError(
            "give heldout_fraction or heldout_prompts, one of them, got "
            f"heldout_fraction={fraction}, heldout_prompts={prompts}."
        )
    if fraction is not None and not 0.0 < fraction < 1.0:
        raise ValueError(f"heldout_fraction must be in (0, 1), got {fraction}: 0.05 is usual.")
    if prompts is not None and prompts < 1:
        raise ValueError(f"heldout_prompts must be at least 1, got {prompts}.")


def _heldout_count(unique: int, fraction: float | None, prompts: int | None, path: str) -> int:
    count = prompts if prompts is not None else max(1, round(fraction * unique))
    if count >= unique:
        raise ValueError(
            f"{path} has {unique} unique prompts, so holding out {count} leaves none to train on. "
            "Hold out fewer, or sample more prompts."
        )
    return count
