"""Small data sets in the layouts that people have."""

import gzip
import json


def lines(path, rows):
    """JSON lines, gzipped where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def without(row, *names):
    """A row that lacks columns."""
    return {key: value for key, value in row.items() if key not in names}
