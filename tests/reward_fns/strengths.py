"""The benchmark's strengths of the length rewards, from weak to strong."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from rl_bench.strengths import STRENGTHS  # noqa: E402

__all__ = ["STRENGTHS"]
