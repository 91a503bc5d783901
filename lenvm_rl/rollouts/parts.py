"""Rollout files made of another's rows: split by prompt, nested subsets, the right answers alone.

Prompts are chosen by a keyed hash of their token ids, never by their name: rows of equal prompts
are taken together whatever their `prompt_id`, in whatever order and in how many files they come. A
part appears when it is whole, and keeps what the file says of itself and its rows' pictures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lenvm_rl.rollouts.columns import DistinctDigests, prompt_digests, row_digests
from lenvm_rl.rollouts.files import DERIVED_METADATA
from lenvm_rl.rollouts.reader import RolloutReader
from lenvm_rl.rollouts.record import SCHEMA
from lenvm_rl.rollouts.writer import whole_rollout_file

_PROMPT = ("prompt_ids", "pictures")
"""Columns that tell prompts apart."""
Judge = Callable[[str, str, str], bool]
"""Of (data source, response text, ground truth): is it right?"""


@contextmanager
def _part_of(
    reader: RolloutReader, out: str | os.PathLike[str], **changes: Any
) -> Iterator[Callable[[pa.RecordBatch, Any], int]]:
    """Yield `put(batch, mask)`, which writes the rows of the mask and returns their number."""
    facts = {key: reader.metadata[key] for key in DERIVED_METADATA if key in reader.metadata}
    with whole_rollout_file(out, **{**facts, **changes}) as writer:

        def put(batch: pa.RecordBatch, mask: Any) -> int:
            rows = batch.filter(pa.array(mask))
            if rows.num_rows:
                writer.append_batch(rows, media=reader.media)
            return rows.num_rows

        yield put


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
    key = f"split-{seed}".encode()
    digests = _prompt_digests(reader, key, progress)
    count = _heldout_count(len(digests), heldout_fraction, heldout_prompts, str(path))
    last = digests[count - 1]
    train_rows = heldout_rows = 0
    with _part_of(reader, out_train) as train, _part_of(reader, out_heldout) as heldout:
        for batch in reader.iter_batches(bar="writing both parts" if progress else None):
            out = prompt_digests(batch, key=key) <= last
            heldout_rows += heldout(batch, out)
            train_rows += train(batch, ~out)
    return SplitReport(train_rows, len(digests) - count, heldout_rows, count, seed)


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


def _prompt_digests(reader: RolloutReader, key: bytes, progress: bool) -> np.ndarray:
    """Sorted distinct digests of all prompts, [P] uint64."""
    distinct = DistinctDigests()
    for batch in reader.iter_batches(_PROMPT, bar="reading prompts" if progress else None):
        distinct.add(prompt_digests(batch, key=key))
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


@dataclass(frozen=True)
class SubsetReport:
    """What a subset holds. Prompts are counted by content."""

    rows: int
    prompts: int
    samples: int
    """Completions of each prompt."""
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        return asdict(self)


def nested_subset(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    prompts: int,
    samples: int,
    seed: int = 0,
) -> SubsetReport:
    """Write the rows of `prompts` prompts with `samples` completions each, in two passes.

    The first prompts of the hashed order are taken, and of each the completions with the smallest
    `sample_id`: with one seed, a subset of fewer prompts or samples is a part of one of more, and a
    comparison of sizes is one of sizes alone. Memory is a few times 8 bytes per row.

    Args:
        path: rollout file or directory.
        out: where the subset goes; must not exist. It appears when whole.
        prompts, samples: at least 1.
        seed: another seed takes other prompts.
    Raises:
        ValueError: the file has fewer prompts, or some taken prompt has fewer completions.
    """
    for name, count in (("prompts", prompts), ("samples", samples)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}.")
    reader = RolloutReader(path)
    taken = _taken(reader, prompts, samples, f"subset-{seed}".encode())
    done = 0
    with _part_of(reader, out) as put:
        for batch in reader.iter_batches():
            put(batch, taken[done : done + batch.num_rows])
            done += batch.num_rows
    return SubsetReport(rows=prompts * samples, prompts=prompts, samples=samples, seed=seed)


def content_fingerprint(path: str | os.PathLike[str]) -> str:
    """16 hex digits of what a rollout file holds: its token ids, which were truncated, the
    tokenizer.

    The order of the rows counts (training visits them by number), their division into shards and
    their names do not.
    """
    reader = RolloutReader(path)
    digest = blake2b(str(reader.metadata["tokenizer_sha"]).encode(), digest_size=8)
    for batch in reader.iter_batches([*_PROMPT, "response_ids", "finish_reason"]):
        ends = batch.column("finish_reason").to_pylist()
        rows = [
            prompt_digests(batch),
            row_digests(batch.column("response_ids")),
            np.array([reason == "length" for reason in ends], np.uint64),
        ]
        digest.update(np.stack(rows, axis=1).astype("<u8").tobytes())
    return digest.hexdigest()


def _taken(reader: RolloutReader, prompts: int, samples: int, key: bytes) -> np.ndarray:
    """Which rows belong to the subset, [N] bool in file order."""
    digests, numbers = [], []
    for batch in reader.iter_batches([*_PROMPT, "sample_id"]):
        digests.append(prompt_digests(batch, key=key))
        numbers.append(batch.column("sample_id").to_numpy())
    digest_N, number_N = np.concatenate(digests), np.concatenate(numbers)
    unique, counts = np.unique(digest_N, return_counts=True)
    if len(unique) < prompts:
        raise ValueError(
            f"{reader.path} has {len(unique)} unique prompts, {prompts} were asked for: ask for "
            "fewer, or sample more."
        )
    if (short := int((counts[:prompts] < samples).sum())) > 0:
        raise ValueError(
            f"{reader.path}: {short} of {prompts} prompts have fewer than {samples} completions "
            f"(the fewest: {counts[:prompts].min()}). Ask for fewer, or sample more."
        )
    # Rank of every row within its prompt, by sample_id and then by place in the file.
    order = np.lexsort((np.arange(len(digest_N)), number_N, digest_N))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank_N = np.empty(len(digest_N), dtype=np.int64)
    rank_N[order] = np.arange(len(digest_N)) - np.repeat(starts, counts)
    return (digest_N <= unique[prompts - 1]) & (rank_N < samples)


@dataclass(frozen=True)
class CorrectReport:
    """What was judged, and what was kept."""

    rows: int
    correct: int
    without_truth: int
    """Rows without a ground truth, which nothing can judge; they are left out."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        return {**asdict(self), "share_correct": self.correct / self.rows}


def keep_correct(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    decode: Callable[[Sequence[int]], str],
    judge: Judge,
    grader_of: Callable[[str], str] | None = None,
    progress: bool = False,
) -> CorrectReport:
    """Write the rows of a rollout file whose response is right, in one pass.

    What a LenVM of right answers learns: the file says so (metadata key `answers`), and the LenVM
    that is trained on it too. Its values are E[G | s, right]; lenvm.baseline=correct asks for them.
    A response is judged as it stands, whether or not the token limit truncated it, as a reward
    function does in training.

    Args:
        path: rollout file or directory.
        out: where they go; must not exist. It appears when whole.
        decode: response token ids to text.
        judge: whether a text is right.
        grader_of: name of the judge of a data source: the rows kept get it as `grader`, and the
            reward 1. None leaves both columns as they are.
        progress: show a bar.
    Raises:
        ValueError: no row has a ground truth, or none is right; and what the judge raises.
    """
    reader = RolloutReader(path)
    correct = without = 0
    with _part_of(reader, out, answers="correct") as put:
        for batch in reader.iter_batches(bar="grading" if progress else None):
            cells = (
                batch.column(name).to_pylist()
                for name in ("data_source", "response_ids", "ground_truth")
            )
            kept = [
                truth is not None and bool(judge(source, decode(ids), truth))
                for source, ids, truth in zip(*cells, strict=True)
            ]
            without += batch.column("ground_truth").null_count
            correct += put(_graded(batch, grader_of) if any(kept) else batch, kept)
        if not correct:
            raise ValueError(
                f"{path}: none of {len(reader)} completions is right, {without} of them have no "
                "ground truth. Sample prompts with a ground_truth, and look whether the grader is "
                "theirs."
            )
    return CorrectReport(rows=len(reader), correct=correct, without_truth=without)


def _graded(batch: pa.RecordBatch, grader_of: Callable[[str], str] | None) -> pa.RecordBatch:
    """The batch as if all of its rows were right."""
    if grader_of is None:
        return batch
    graders = [grader_of(source) for source in batch.column("data_source").to_pylist()]
    for name, cells in (("reward", [1.0] * len(graders)), ("grader", graders)):
        field = SCHEMA.field(name)
        batch = batch.set_column(SCHEMA.get_field_index(name), field, pa.array(cells, field.type))
    return batch
