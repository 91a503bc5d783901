"""What do the timed rounds say? Medians, ratios, the bars, and a table."""

from __future__ import annotations

import os
import statistics
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

TRAINERS = ("trunk", "ours", "padded")
BARS = {"ours_to_trunk": 0.85, "ours_to_padded": 1.5}
"""Least ratios of tokens/s that the project promises."""


def summarize(timed: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds, ratios of medians, and whether they pass the bars."""
    ceiling = max(entry["ceiling"] for entry in timed)
    trainers = {}
    for name in TRAINERS:
        rates = [entry["tokens_per_s"][name] for entry in timed]
        flops = statistics.median(entry["flops_per_s"][name] for entry in timed)
        trainers[name] = {
            "tokens_per_s": round(statistics.median(rates), 1),
            "tokens_per_s_rounds": [round(rate, 1) for rate in rates],
            "seconds_rounds": [round(entry["seconds"][name], 3) for entry in timed],
            "cpu_seconds_rounds": [round(entry["cpu_seconds"][name], 3) for entry in timed],
            "tflop_per_s": round(flops / 1e12, 4),
            "share_of_matmul": round(flops / ceiling, 3),
        }
    ratios = {}
    for ratio in BARS:
        above, below = ratio.split("_to_")
        ratios[ratio] = round(trainers[above]["tokens_per_s"] / trainers[below]["tokens_per_s"], 3)
        ratios[f"{ratio}_rounds"] = [
            round(entry["tokens_per_s"][above] / entry["tokens_per_s"][below], 3) for entry in timed
        ]
        ratios[f"{ratio}_by_cpu_time"] = round(
            statistics.median(
                entry["cpu_seconds"][below] / entry["cpu_seconds"][above] for entry in timed
            ),
            3,
        )
    lengths = torch.tensor([n for entry in timed for n in entry["lengths"]], dtype=torch.float64)
    return {
        "data": {
            "rows_per_step": len(timed[0]["lengths"]),
            "tokens_per_step": [entry["tokens"] for entry in timed],
            "row_tokens_mean": round(lengths.mean().item(), 1),
            "row_tokens_std": round(lengths.std().item(), 1),
            "row_tokens_longest": int(lengths.max()),
            "packed_micro_batches": [entry["micro_batches"] for entry in timed],
            "padded_over_real_tokens": round(
                sum(entry["padded_tokens"] for entry in timed) / lengths.sum().item(), 3
            ),
        },
        "matmul_tflop_per_s": round(ceiling / 1e12, 4),
        "trainers": trainers,
        **ratios,
        "bars": BARS,
        "passes": {ratio: ratios[ratio] >= bar for ratio, bar in BARS.items()},
    }


def machine(device: str) -> dict[str, Any]:
    """Where the figures were measured."""
    facts: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    else:
        facts["load_average"] = [round(load, 2) for load in os.getloadavg()]
    return facts


def show(figures: dict[str, Any], console: Console) -> None:
    """The figures as a table."""
    ceiling = figures["matmul_tflop_per_s"]
    table = Table(title=f"training speed, {figures['preset']}, matrix products {ceiling} TFLOP/s")
    for column in ("trainer", "tokens/s", "rounds", "TFLOP/s", "of matmul"):
        table.add_column(column, justify="left" if column == "trainer" else "right")
    for name, entry in figures["trainers"].items():
        table.add_row(
            name,
            f"{entry['tokens_per_s']:,.0f}",
            " ".join(f"{rate:,.0f}" for rate in entry["tokens_per_s_rounds"]),
            f"{entry['tflop_per_s']:.3g}",
            f"{entry['share_of_matmul']:.0%}",
        )
    console.print(table)
    for ratio, bar in BARS.items():
        verdict = "passes" if figures["passes"][ratio] else "MISSES"
        name = ratio.replace("_to_", " / ")
        console.print(f"{name}: {figures[ratio]:.2f}, {verdict} the bar of {bar}")
