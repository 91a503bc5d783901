"""Benchmarks by name: `python -m scripts.bench NAME --help`; without a name, the list of them."""

import sys

from scripts.bench.harness import main

if __name__ == "__main__":
    sys.exit(main())
