"""Pictures of a rollout file, each stored once, however many completions were asked about it.

They lie beside the shards in `media-00000.parquet` and so on (`x.media.parquet` beside `x.parquet`)
with the columns `hash` (SHA-256 of the bytes), `mime` and `bytes`; rows name them by hash. A file
of pictures is whole before the first shard that names one of them gets its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lenvm_rl.rollouts.files import DECODING_ERRORS, ShardFile, damaged

MEDIA_SCHEMA = pa.schema([("hash", pa.string()), ("mime", pa.string()), ("bytes", pa.binary())])
_GROUP_BYTES = 4 << 20
"""A row group is closed at this many bytes of pictures: what reading one of them decodes."""
_NAME = re.compile(r"media-\d{5,}\.parquet")


class Picture(NamedTuple):
    """An encoded picture."""

    mime: str
    """Such as `image/png`."""
    data: bytes


def media_paths(path: Path) -> list[Path]:
    """Files of pictures of the rollout file at `path`: a directory, a `.parquet`, or one shard."""
    single = path.with_name(f"{path.stem}.media.parquet")
    if single.is_file():
        return [single]
    folder = path if path.is_dir() else path.parent
    return sorted(entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name))


class MediaReader(Mapping[str, Picture]):
    """Pictures by hash; memory is an entry per picture and one row group."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place: dict[str, tuple[Path, int, int]] = {}
        self._group: tuple[Path, int, list[dict[str, object]]] | None = None
        for file in media_paths(path):
            for group, hashes in enumerate(_hashes(file)):
                self._place.update({name: (file, group, n) for n, name in enumerate(hashes)})

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, name: object) -> bool:
        return name in self._place

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __getitem__(self, name: str) -> Picture:
        """The picture of a hash.

        Raises:
            ValueError: it is not there, or its bytes are damaged.
        """
        if name not in self._place:
            raise ValueError(
                f"{self._path} names picture {name!r:.80}, and no file of pictures beside its "
                "shards holds it: copy media-*.parquet along with them."
            )
        file, group, row = self._place[name]
        if self._group is None or self._group[:2] != (file, group):
            try:
                with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                    self._group = (file, group, parquet.read_row_group(group).to_pylist())
            except DECODING_ERRORS as error:
                raise damaged(file, group, error) from error
        cells = self._group[2][row]
        data = bytes(cells["bytes"])  # pyright: ignore
        if sha256(data).hexdigest() != name:
            raise ValueError(
                f"{file} holds another picture under the hash {name:.16} than the one that was "
                "stored: the file was changed. Restore it from a copy."
            )
        return Picture(str(cells["mime"]), data)


class MediaWriter:
    """Pictures on their way to the directory or `.parquet` file `path`, which may have some.

    Attributes:
        known: hashes that are there or wait for `finish`.
    """

    def __init__(self, path: Path, *, single: bool) -> None:
        self._path, self._single = path, single
        found = [] if single else media_paths(path)
        self.known: set[str] = {name for file in found for part in _hashes(file) for name in part}
        self._number = 1 + int(found[-1].stem.removeprefix("media-")) if found else 0
        self._file: ShardFile | None = None
        self._held: list[tuple[str, str, bytes]] = []
        self._bytes = 0

    def add(self, data: bytes, mime: str) -> str:
        """Take a picture, once, and return its hash."""
        if not data or "/" not in mime:
            raise ValueError(
                f"a picture needs bytes and a type such as image/png, got {len(data)} bytes of "
                f"{mime!r}."
            )
        name = sha256(data).hexdigest()
        if name not in self.known:
            self.known.add(name)
            self._held.append((name, mime, data))
            self._bytes += len(data)
            if self._bytes >= _GROUP_BYTES:
                self._write()
        return name

    def finish(self) -> None:
        """Complete the file of the pictures added since the last call; none, no file."""
        self._write()
        if self._file is not None:
            self._file.finish()
            self._file, self._number = None, self._number + 1

    def discard(self) -> None:
        """Give up what is not complete."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _write(self) -> None:
        if not self._held:
            return
        if self._file is None:
            name = f"{self._path.stem}.media" if self._single else f"media-{self._number:05d}"
            folder = self._path.parent if self._single else self._path
            self._file = ShardFile(folder / f"{name}.parquet", MEDIA_SCHEMA, compression="none")
        columns = [pa.array(cells) for cells in zip(*self._held, strict=True)]
        self._file.write(pa.RecordBatch.from_arrays(columns, schema=MEDIA_SCHEMA))
        self._held, self._bytes = [], 0


def named_pictures(column: pa.Array) -> Iterable[str]:
    """Distinct hashes in a `pictures` column."""
    return () if column.null_count == len(column) else column.flatten().unique().to_pylist()


def _hashes(file: Path) -> Iterator[list[str]]:
    """Hashes of each row group."""
    try:
        with pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, ["hash"]).column(0).to_pylist()
    except (*DECODING_ERRORS, KeyError) as error:
        raise ValueError(
            f"{file} is no whole file of pictures ({error}): restore it from a copy."
        ) from error
