"""Training speed of a length value model, beside the bare trunk and beside a padded trainer.

    python -m scripts.bench pretrain --json pretrain.json
    python -m scripts.bench pretrain --preset gpu-1.5b

Tokens/s of three trainers of the same trunk on the same completions, interleaved in one process:

  trunk   the bare trunk: forward and backward on the packed micro-batches that verl makes of the
          completions, with ours' attention, mean of the last hidden states as the loss. No head,
          no clipping, no optimiser step.
  ours    one step of verl's worker with the length value model: from lists of tokens through
          packing, head, loss and gradient clipping to the AdamW step.
  padded  one step of the same with an LM head, as the method's reference trains: 8 completions
          in random order per micro-batch, padded to the longest, the logits of every token
          computed and thrown away. Same head, loss, clipping and AdamW.

Tokens are those of prompts and responses; padding never counts. A round times each trainer once on
the round's own completions; figures are medians over rounds. Ratios are those of wall time; beside
them stand those of processor time, which other load on the machine disturbs less. TFLOP/s count
what the trunk needs for the real tokens (presets.py), and are compared with the
largest rate that square matrix products reach in the same run. The last line of stdout is one JSON
object.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lenvm_rl.rollouts import Rollout
from scripts.bench import harness
from scripts.bench.hardware import product_rate, synchronize
from scripts.bench.harness import CONSOLE, Failed, show
from scripts.bench.presets import (
    PRESETS,
    Preset,
    drawn_lengths,
    file_lengths,
    make_rows,
    training_flops,
    trunk_parameters,
)

TRAINERS = ("trunk", "ours", "padded")
BARS = {"ours_to_trunk": 0.85, "ours_to_padded": 1.5}
"""Least ratios of tokens/s that the project promises."""


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """Sizes, and where lengths come from."""

    preset: Literal["cpu-25m", "gpu-1.5b"] = "cpu-25m"
    """25 million parameters without the embedding on a CPU, or Qwen2.5-1.5B's shape on a GPU."""
    rounds: int = 3
    """How often each is timed."""
    rows: int | None = None
    """Completions per step, in place of the preset's."""
    rollouts: Path | None = None
    """Take the lengths of this rollout file instead of drawing."""
    seed: int = 0
    """Of the lengths and their order."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, got {self.rounds}")


def run(options: Options) -> Iterator[dict[str, Any]]:
    """The figures of the rounds so far, so that a run that is stopped leaves some."""
    preset = PRESETS[options.preset]
    preset = replace(preset, rows=options.rows or preset.rows)
    if preset.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"--preset {options.preset} trains on a CUDA device, and torch {torch.__version__} "
            "sees none here. Run it on a machine with a GPU, or use --preset cpu-25m."
        )
    source = length_source(preset, options.rollouts, options.seed)
    for figures in time_rounds(preset, source, options.rounds):
        figures = {"preset": options.preset, **figures}
        yield figures
    show_trainers(figures)


def length_source(
    preset: Preset, rollouts: Path | None, seed: int
) -> Callable[[int], list[Rollout]]:
    """The completions of a round, by its number."""
    if rollouts is None:
        return lambda index: make_rows(
            drawn_lengths(preset, preset.rows, seed + index), preset.shape.vocab, seed + index
        )
    lengths, too_long = file_lengths(rollouts, preset)
    if too_long:
        CONSOLE.print(f"{too_long} of {too_long + len(lengths)} completions are too long, left out")
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=rng).numpy()

    def rows(index: int) -> list[Rollout]:
        chosen = order[(index * preset.rows + torch.arange(preset.rows).numpy()) % len(order)]
        return make_rows(lengths[chosen], preset.shape.vocab, seed + index)

    return rows


def time_rounds(
    preset: Preset, rows_of: Callable[[int], list[Rollout]], rounds: int
) -> Iterator[dict[str, Any]]:
    """Time `rounds` rounds of the three trainers, after a small warm-up of each.

    Yields the figures of the rounds so far, so that a run that is cut short leaves some.
    """
    prepare_process(preset.device)
    # Only now: verl looks at VERL_PLATFORM when it is imported.
    from scripts.bench.trainers import (
        BareTrunk,
        OursInVerl,
        PaddedWithLMHead,
        save_fresh_model,
    )

    attention = attention_of(preset.device)
    with tempfile.TemporaryDirectory(prefix="bench_pretrain_") as folder:
        model = save_fresh_model(preset, Path(folder) / "lenvm")
        ours = OursInVerl(Path(folder) / "lenvm", preset, attention)
    trunk = BareTrunk(model, preset, attention)
    padded = PaddedWithLMHead(model, preset, attention)
    parameters = {
        "trunk": sum(p.numel() for p in model.model.parameters()),
        "trunk_without_embedding": trunk_parameters(preset.shape),
        "head": sum(p.numel() for p in model.score.parameters()),
        "lm_head_tied": preset.shape.vocab * preset.shape.hidden,
    }
    del model

    few = rows_of(rounds)[: 2 * preset.padded_rows]
    steps = {
        "trunk": lambda rows: trunk.step(ours.micro_batches(rows)),
        "ours": ours.step,
        "padded": padded.step,
    }
    for step in steps.values():
        step(few)
    timed = []
    for index in range(rounds):
        timed.append(time_round(preset, rows_of(index), trunk, ours, padded))
        CONSOLE.print(
            f"round {index + 1}/{rounds}: "
            + ", ".join(f"{name} {timed[-1]['tokens_per_s'][name]:,.0f} tok/s" for name in TRAINERS)
        )
        yield {
            "sizes": asdict(preset),
            "parameters": parameters,
            "attention": {"packed": trunk.attention, "padded": attention},
            **summarize(timed),
        }


def time_round(
    preset: Preset, rows: list[Rollout], trunk: Any, ours: Any, padded: Any
) -> dict[str, Any]:
    """Each trainer once on `rows`, and the matrix products in between."""
    lengths = [len(row.prompt_ids) + row.length for row in rows]
    micro_batches = ours.micro_batches(rows)
    work = {
        "trunk": lambda: trunk.step(micro_batches),
        "ours": lambda: ours.step(rows),
        "padded": lambda: padded.step(rows),
    }
    dtype = torch.bfloat16 if preset.precision == "bf16" else torch.float32
    ceiling, seconds, cpu_seconds, losses = 0.0, {}, {}, {}
    for name in TRAINERS:
        ceiling = max(ceiling, product_rate(preset.device, dtype, size=preset.matmul_size))
        synchronize(preset.device)
        start, cpu_start = time.perf_counter(), time.process_time()
        losses[name] = work[name]()
        synchronize(preset.device)
        seconds[name] = time.perf_counter() - start
        cpu_seconds[name] = time.process_time() - cpu_start
    packed = [ids.shape[1] for ids, _ in micro_batches]
    if packed != ours.seen:
        raise Failed(f"the trunk got micro-batches of {packed} tokens, ours {ours.seen}")
    chunks = [lengths[i : i + padded.rows] for i in range(0, len(lengths), padded.rows)]
    return {
        "tokens": sum(lengths),
        "lengths": lengths,
        "micro_batches": len(packed),
        "padded_tokens": sum(len(chunk) * max(chunk) for chunk in chunks),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens_per_s": {name: sum(lengths) / seconds[name] for name in TRAINERS},
        "flops_per_s": {name: training_flops(preset, lengths) / seconds[name] for name in TRAINERS},
        "ceiling": ceiling,
        "losses": losses,
    }


def prepare_process(device: str) -> None:
    """The environment of a lone verl worker; what a launcher has set stays."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if device == "cpu":
        os.environ.setdefault("VERL_PLATFORM", "cpu")
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }.items():
        os.environ.setdefault(name, value)


def attention_of(device: str) -> str:
    """The implementation that all three trainers use."""
    from transformers.utils import is_flash_attn_2_available

    fast = device == "cuda" and is_flash_attn_2_available()
    return "flash_attention_2" if fast else "sdpa"


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


def show_trainers(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    ceiling = figures["matmul_tflop_per_s"]
    show(
        f"training speed, {figures['preset']}, matrix products {ceiling} TFLOP/s",
        ("trainer", "tokens/s", "rounds", "TFLOP/s", "of matmul"),
        (
            [
                name,
                f"{entry['tokens_per_s']:,.0f}",
                " ".join(f"{rate:,.0f}" for rate in entry["tokens_per_s_rounds"]),
                f"{entry['tflop_per_s']:.3g}",
                f"{entry['share_of_matmul']:.0%}",
            ]
            for name, entry in figures["trainers"].items()
        ),
    )
    for ratio, bar in BARS.items():
        verdict = "passes" if figures["passes"][ratio] else "MISSES"
        name = ratio.replace("_to_", " / ")
        CONSOLE.print(f"{name}: {figures[ratio]:.2f}, {verdict} the bar of {bar}")
