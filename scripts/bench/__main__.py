"""Runs a benchmark: `python -m scripts.bench NAME --help`; without a name, the list of them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

NAMES = sorted(f.stem for f in Path(__file__).parent.glob("[a-z]*.py"))


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m scripts.bench NAME [options]; names: {', '.join(NAMES)}")
    name = sys.argv.pop(1)
    sys.argv[0] = f"scripts.bench {name}"
    runpy.run_module(f"scripts.bench.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
