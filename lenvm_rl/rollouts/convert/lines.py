"""JSON lines as a rollout file, with every bad row accounted for.

A parser is a function from one JSON object to what it holds, each a `Found` or a `BadRow`; this
module reads the lines, tokenises, writes the good rows and keeps the books: nothing is dropped
without being counted, and named by file and line. A row may fail in any way it likes: it is a bad
row, and the prompt's other completions are not concerned.

A source that does not say how a completion ended is asked (`Endings`): a truncated completion that
is taken for a finished one teaches that responses end at the limit.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lenvm_rl.rollouts.columns import content_digest
from lenvm_rl.rollouts.progress import progress_bar
from lenvm_rl.rollouts.record import FINISH_REASONS, MalformedRow, Rollout, check_row
from lenvm_rl.rollouts.text import (
    Message,
    ReadText,
    TextCodec,
    TextProblem,
    lengths_agree,
    with_reasoning,
)
from lenvm_rl.rollouts.writer import whole_rollout_file

ERRORS = ("raise", "report")


@dataclass(eq=False)
class BadRow(Exception):
    """Why a row, or one of the completions in it, cannot be converted."""

    kind: str
    """Short name that is counted."""
    reason: str
    """Sentence with the value and the remedy."""
    file: str = ""
    line: int = 0
    """1-based."""

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason} [{self.kind}]"

    @classmethod
    def of(cls, error: Exception) -> BadRow:
        """Any exception of a row, as a bad row."""
        if isinstance(error, BadRow):
            return error
        if isinstance(error, TextProblem | MalformedRow):
            return cls(error.kind, str(error))
        return cls("unreadable_row", f"{type(error).__name__}: {error}".rstrip(".") + ".")


@dataclass(frozen=True, kw_only=True)
class Endings:
    """How completions ended, where the source does not say it."""

    max_tokens: int | None = None
    """Token limit of the generation: a completion of so many tokens or more was truncated."""
    assume_finished: bool = False
    """There was no limit: all ended by themselves."""
    keep_unknown: bool = False
    """A completion of which nothing says how it ended is kept as truncated, which claims the least:
    its length is a lower bound. Else it is a bad row."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")


@dataclass
class ConversionReport:
    """The books of a conversion."""

    files: list[str]
    lines: int = 0
    """Lines read, blank ones left out."""
    rows: int = 0
    """Rollouts written."""
    bad: Counter[str] = field(default_factory=Counter)
    """Bad rows by kind."""
    examples: list[BadRow] = field(default_factory=list)
    """The first bad rows."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was inferred or noticed about written rows, by kind, e.g. `finish_reason_inferred`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able figures."""
        return {
            **{key: getattr(self, key) for key in ("files", "lines", "rows")},
            "bad": dict(self.bad),
            "examples": [asdict(example) for example in self.examples],
            "notes": dict(self.notes),
        }

    def summary(self) -> str:
        """A few lines for a screen."""
        parts = [f"{self.rows:,} rollouts from {self.lines:,} lines of {len(self.files)} files"]
        parts += [f"{count:,} with {kind}" for kind, count in self.notes.most_common()]
        parts += [f"{count:,} left out: {kind}" for kind, count in self.bad.most_common()]
        return "\n".join([*parts, *(f"  {example}" for example in self.examples)])


@dataclass(frozen=True, kw_only=True)
class Found:
    """A completion as its source has it."""

    prompt: str | Sequence[Message]
    answer: Callable[[], Mapping[str, Any]]
    """The assistant's message, see `with_reasoning`; may raise BadRow."""
    reason: str | None = None
    """The finish reason, where the source says it."""
    tokens: int | None = None
    """The source's own count of the completion's tokens."""
    prompt_id: str | None = None
    """None: a digest of the prompt's tokens."""
    columns: dict[str, Any]
    """Further columns of its row."""
    note: str = ""
    """What is noted about it once it is read."""


Parser = Callable[[dict[str, Any], Counter[str]], Iterable["Found | BadRow"]]
"""Turns one JSON object into what it holds and counts notes; may raise for the whole object."""


def convert_lines(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    parse: Parser,
    *,
    codec: TextCodec,
    max_tokens: int | None = None,
    assume_finished: bool = False,
    keep_unknown: bool = False,
    errors: str = "raise",
    max_examples: int = 10,
    progress: bool = False,
) -> ConversionReport:
    """Convert JSON lines (`.jsonl`, or gzipped) into a rollout file.

    Args:
        path: file, files or directory of `.jsonl` / `.jsonl.gz`, in order.
        out: rollout directory or `.parquet` file to make; appears when whole.
        parse: what to make of one JSON object.
        codec: the tokenizer of the policy that wrote the completions, its EOS and vocabulary.
        max_tokens, assume_finished, keep_unknown: see `Endings`.
        errors: `raise` stops at the first bad row; `report` counts it and goes on.
        max_examples: how many bad rows the report quotes.
        progress: show a bar.
    Raises:
        ValueError: unknown `errors`, no files, a bad row with `raise`, nothing convertible.
    """
    if errors not in ERRORS:
        raise ValueError(f"errors must be one of {list(ERRORS)}, got {errors!r}.")
    endings = Endings(
        max_tokens=max_tokens, assume_finished=assume_finished, keep_unknown=keep_unknown
    )
    files = find_sources(path)
    report = ConversionReport(files=[str(file) for file in files])
    settings = {
        "tokenizer_sha": codec.tokenizer_sha,
        "vocab_size": codec.vocab_size,
        "eos_ids": sorted(codec.ends),
        "retokenized": True,
        "chat_template_args": codec.chat_template_args,
    }
    finished: Counter[int] = Counter()
    zipped = any(file.suffix == ".gz" for file in files)
    size = None if zipped else sum(file.stat().st_size for file in files)

    def good(items: Iterable[Rollout | BadRow]) -> Iterator[Rollout]:
        for item in items:
            if not isinstance(item, BadRow):
                report.rows += 1
                finished[item.length - 1] += not item.truncated  # EOS does not count
                yield item
            elif errors == "raise":
                raise ValueError(
                    f"{item} Pass errors='report' (--skip-bad) to go on without such rows."
                ) from item
            else:
                report.bad[item.kind] += 1
                report.examples += [item] if len(report.examples) < max_examples else []

    with (
        whole_rollout_file(out, **settings) as writer,
        progress_bar("converting", size, shown=progress) as advance,
    ):
        writer.append(good(_items(files, parse, codec, endings, report, advance)))
        if not report.rows:
            raise ValueError(
                f"nothing to convert in {report.files}: {report.lines} lines, all bad or none at "
                f"all.\n{report.summary()}"
            )
    if spike := longest_spike(finished):
        length, rows = spike
        report.notes[
            f"a finished completion of the longest length, {length} tokens: if that is the token "
            "limit, these were truncated (--max-tokens)"
        ] = rows
    return report


def longest_spike(lengths: Mapping[int, int]) -> tuple[int, int] | None:
    """(longest length, rows of it) where suspiciously many share it, as under a token limit.

    The longest per cent of the range must hold 3 rows, and more than the nine per cent below it:
    a tail that ends by itself thins out. Below 8 tokens lengths coincide by themselves.

    Args:
        lengths: length in tokens -> finished completions of it.
    """
    top = max(lengths, default=0)
    here = sum(count for length, count in lengths.items() if length > 0.99 * top - 1e-9)
    below = sum(count for length, count in lengths.items() if 0.9 * top <= length <= 0.99 * top)
    return (top, here) if top >= 8 and here >= 3 and here > below else None


def find_sources(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """JSON lines files at a path or paths; directories are searched, names sorted with numbers."""
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    found: list[Path] = []
    for place in map(Path, paths):
        if place.is_dir():
            inside = [x for x in place.iterdir() if x.name.endswith((".jsonl", ".jsonl.gz"))]
            found += sorted(inside, key=_natural)
        elif place.exists():
            found.append(place)
        else:
            raise FileNotFoundError(f"no such file or directory: {place}")
    if not found:
        raise ValueError(f"no .jsonl or .jsonl.gz in {[str(p) for p in paths]}.")
    return found


def _natural(path: Path) -> tuple[int, str]:
    stem = path.name.split(".")[0]
    return (int(stem) if stem.isdecimal() else -1, path.name)


def _items(
    files: Sequence[Path],
    parse: Parser,
    codec: TextCodec,
    endings: Endings,
    report: ConversionReport,
    advance: Callable[[int], None],
) -> Iterator[Rollout | BadRow]:
    """Everything the lines of the files turn into, bad rows with their place."""
    samples: Counter[str] = Counter()
    for file in files:
        for line, value in _objects(file, advance):
            report.lines += 1
            try:
                if isinstance(value, BadRow):
                    raise value
                found = list(parse(value, report.notes))
            except Exception as error:  # whatever a row is, the next one is another
                found = [BadRow.of(error)]
            for item in found:
                if isinstance(item, Found):
                    item = _row(item, codec, endings, samples, report.notes)
                if isinstance(item, BadRow):
                    item = BadRow(item.kind, item.reason, str(file), line)
                yield item


def _row(
    found: Found,
    codec: TextCodec,
    endings: Endings,
    samples: Counter[str],
    notes: Counter[str],
) -> Rollout | BadRow:
    """A completion as a row, or why no rollout file takes it."""
    try:
        prompt_ids = codec.prompt(found.prompt)
        prompt_id = prompt_name(prompt_ids) if found.prompt_id is None else found.prompt_id
        sample_id = samples[prompt_id]
        samples[prompt_id] += 1
        ids, reason = read_response(found, endings, codec=codec, prompt_ids=prompt_ids, notes=notes)
        row = Rollout(
            prompt_id=prompt_id,
            sample_id=sample_id,
            prompt_ids=prompt_ids,
            response_ids=ids,
            finish_reason=reason,
            **found.columns,
        )
        check_row(row, vocab_size=codec.vocab_size, eos_ids=sorted(codec.ends))
    except Exception as error:  # the prompt's other completions are not concerned
        return BadRow.of(error)
    return row


def prompt_name(prompt_ids: Sequence[int]) -> str:
    """A `prompt_id` made of the prompt's content: 16 hexadecimal digits."""
    return f"{content_digest(np.asarray(prompt_ids, dtype=np.int32)):016x}"


def _objects(
    file: Path, advance: Callable[[int], None]
) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(line number, object) for each line that is not blank."""
    with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as source:
        number = 0
        while True:
            number += 1
            try:
                line = source.readline()
            except (EOFError, OSError, zlib.error) as error:
                yield number, BadRow("unreadable", f"the rest of the file is lost ({error}).")
                return
            if not line:
                return
            advance(len(line))
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)  # Windows tools begin files with it
            if number == 1 and line.lstrip().startswith(b"["):
                raise ValueError(
                    f"{file} is a JSON array, not JSON lines. Write one object per line, e.g. with "
                    f"`jq -c '.[]' {file.name}`."
                )
            if line.strip():
                yield number, _object(line)


def _object(line: bytes) -> dict[str, Any] | BadRow:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow("bad_encoding", f"not UTF-8 ({error}).")
    except ValueError as error:  # a number of thousands of digits is one as well
        return BadRow("bad_json", f"not JSON ({error}); the line may be half-written.")
    except RecursionError:
        return BadRow("bad_json", "its arrays and objects lie too deep in one another.")
    if not isinstance(value, dict):
        return BadRow("not_an_object", f"a JSON {type(value).__name__} instead of an object.")
    return value


def require(row: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    """`row[key]`, which must be there and of the given type, else BadRow."""
    if key not in row:
        raise BadRow("missing_key", f"no {key!r}; the object has {sorted(row)[:12]}.")
    value = row[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise BadRow("wrong_type", f"{key!r} is {_short(value)}, expected {names}.")
    return value


def read_response(
    found: Found,
    endings: Endings,
    *,
    codec: TextCodec,
    prompt_ids: Sequence[int],
    notes: Counter[str],
) -> tuple[list[int], str]:
    """(response ids, finish reason) of a completion.

    Where the source gives no finish reason, it is read off an end token that the text was dumped
    with, or told by `endings`.

    Raises:
        BadRow: an empty prompt or text, a reason that is none or not known, another count.
        TextProblem: see `TextCodec`.
    """
    text, said, tokens = with_reasoning(codec, found.answer()), found.reason, found.tokens
    if not len(prompt_ids):
        raise BadRow("empty_prompt", "the prompt has no tokens, so there is no state s_0.")
    if not text.strip():
        raise BadRow("empty_completion", f"the completion is {_short(text)}: nothing to learn.")
    if said is not None and said not in FINISH_REASONS:
        raise BadRow(
            "unknown_finish_reason", f"finish_reason {said!r:.60} is none of {FINISH_REASONS}."
        )
    read = codec.read(text)
    reason = said or _inferred(read, endings, notes)
    ids = codec.ended(read, finished=reason == "stop")
    if read.left_out:
        notes["tokens after the completion's end left out (padding, the template's)"] += 1
    if found.note:
        notes[found.note] += 1
    if tokens is not None and not lengths_agree(len(ids), tokens):
        raise BadRow(
            "other_length",
            f"the completion has {len(ids)} tokens, its source counted {tokens}: part of it is not "
            "here (reasoning beside the content?), or --tokenizer is not the policy's.",
        )
    if tokens is not None:
        notes["a token count unlike the source's"] += len(ids) != tokens
    if endings.max_tokens is not None and len(ids) > endings.max_tokens + 1:
        notes["a completion longer than max_tokens (re-tokenised, or another limit)"] += 1
    return ids, reason


def _inferred(read: ReadText, endings: Endings, notes: Counter[str]) -> str:
    if read.ended:
        notes["finish_reason read off the text's own end token"] += 1
        return "stop"
    if endings.max_tokens is not None:
        truncated = len(read.ids) >= endings.max_tokens
        notes["finish_reason inferred from max_tokens"] += 1
        notes["finish_reason inferred as truncated"] += truncated
        return "length" if truncated else "stop"
    if endings.assume_finished:
        notes["finish_reason assumed to be stop, as asked"] += 1
        return "stop"
    if endings.keep_unknown:
        notes["unknown end, kept as truncated; else say --max-tokens or --assume-finished"] += 1
        return "length"
    raise BadRow(
        "unknown_finish",
        "the source does not say whether the completion ended by itself or was truncated: give the "
        "token limit that it was generated with (--max-tokens), or --assume-finished if there was "
        "none.",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
