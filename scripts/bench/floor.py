"""Decoding steps of a 1.5 B LenVM and a 7 B policy against what the device allows.

    python -m scripts.bench floor --device cuda --json guidance-gpu.json

Steps of random weights of those shapes, in bfloat16, K = 16, context 2,048, 1 to 64 requests,
against the time of reading weights, keys and values once or that of their matrix products,
whichever is longer (step_cost/floor.py). It has been run in tiny on a CPU only; its figures are to
be measured on a GPU. The last line of stdout is one JSON object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from scripts.bench import harness
from scripts.bench.hardware import copy_bandwidth, product_rate
from scripts.bench.harness import CONSOLE, show
from scripts.bench.step_cost.floor import BARS, FLOOR_SHAPES, against_the_floor


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """The load."""

    requests: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Requests at once."""
    candidates: int = 16
    """K of each."""
    context: int = 2048
    """Tokens of a prompt."""
    steps: int = 30
    """Timed steps of each."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of both models."""
    threads: int = 2
    """On a CPU."""
    seed: int = 0
    """Of the weights."""

    def __post_init__(self) -> None:
        harness.check_device(self.device)


def run(options: Options) -> dict[str, Any]:
    """Steps against the floor, and how many pass the bars."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    dtype, large = getattr(torch, options.dtype), options.device != "cpu"
    bandwidth = copy_bandwidth(options.device, mib=1024 if large else 64)
    rate = product_rate(options.device, dtype, size=8192 if large else 512)
    CONSOLE.print(f"copy {bandwidth / 1e9:.1f} GB/s, matrix products {rate / 1e12:.2f} TFLOP/s")
    rows = against_the_floor(
        device=options.device,
        dtype=dtype,
        requests=list(options.requests),
        candidates=options.candidates,
        context=options.context,
        steps=options.steps,
        shapes=FLOOR_SHAPES,
        bandwidth=bandwidth,
        rate=rate,
        advance=CONSOLE.print,
    )
    show_floor(rows)
    return {
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "products_tflop_per_s": round(rate / 1e12, 3),
        "rows": rows,
        "bar": BARS,
        "within_bar": {
            name: [sum(row[name] <= most for row in rows), len(rows)] for name, most in BARS.items()
        },
    }


def show_floor(rows: list[dict[str, Any]]) -> None:
    """One line per number of requests."""
    show(
        "ms per step, against reading weights, keys and values once",
        ("R", "LenVM", "floor", "x", "policy", "floor", "x", "guided / not", "at floor"),
        (
            [
                str(row["requests"]),
                *(
                    f"{row[f'{name}_{kind}']:.2f}"
                    for name in ("lenvm", "policy")
                    for kind in ("ms", "floor_ms", "to_floor")
                ),
                f"{row['overhead']:.2f}",
                f"{row['overhead_at_floor']:.2f}",
            ]
            for row in rows
        ),
        left=0,
    )
