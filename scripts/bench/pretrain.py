"""How fast does a length value model train, beside the bare trunk and beside a padded trainer?

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
what the trunk needs for the real tokens (trainers/hardware.py), and are compared with the
largest rate that square matrix products reach in the same run. The last line of stdout is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.atomic import replacing
from scripts.bench.trainers.hardware import (
    matmul_ceiling,
    synchronize,
    training_flops,
    trunk_parameters,
)
from scripts.bench.trainers.presets import PRESETS, Preset, drawn_lengths, file_lengths, make_rows
from scripts.bench.trainers.report import TRAINERS, machine, show, summarize

CONSOLE = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    preset = replace(PRESETS[args.preset], **({"rows": args.rows} if args.rows else {}))
    if preset.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"--preset {args.preset} trains on a CUDA device, and torch {torch.__version__} sees "
            "none here. Run it on a machine with a GPU, or use --preset cpu-25m."
        )
    try:
        source = length_source(preset, args.rollouts, args.seed)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    for so_far in run(preset, source, args.rounds):
        figures = {"preset": args.preset, **so_far}
        if args.json:
            with replacing(Path(args.json)) as temporary:
                temporary.write_text(json.dumps(figures) + "\n")
    show(figures, CONSOLE)
    print(json.dumps(figures))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu-25m")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (3)")
    parser.add_argument("--rows", type=int, help="completions per step (default: the preset's)")
    parser.add_argument(
        "--rollouts", type=Path, help="take the lengths of this rollout file instead of drawing"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the lengths and their order (0)")
    parser.add_argument("--json", help="write the figures to this file too")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    return args


def length_source(
    preset: Preset, rollouts: Path | None, seed: int
) -> Callable[[int], list[Rollout]]:
    """The completions of a round, by its number."""
    if rollouts is None:
        return lambda index: make_rows(
            drawn_lengths(preset, preset.rows, seed + index), preset.vocab_size, seed + index
        )
    lengths, too_long = file_lengths(rollouts, preset)
    if too_long:
        CONSOLE.print(f"{too_long} of {too_long + len(lengths)} completions are too long, left out")
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=rng).numpy()

    def rows(index: int) -> list[Rollout]:
        chosen = order[(index * preset.rows + torch.arange(preset.rows).numpy()) % len(order)]
        return make_rows(lengths[chosen], preset.vocab_size, seed + index)

    return rows


def run(
    preset: Preset, rows_of: Callable[[int], list[Rollout]], rounds: int
) -> Iterator[dict[str, Any]]:
    """Time `rounds` rounds of the three trainers, after a small warm-up of each.

    Yields the figures of the rounds so far, so that a run that is cut short leaves some.
    """
    prepare_process(preset.device)
    # Only now: verl looks at VERL_PLATFORM when it is imported.
    from scripts.bench.trainers.arms import (
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
        "trunk_without_embedding": trunk_parameters(preset),
        "head": sum(p.numel() for p in model.score.parameters()),
        "lm_head_tied": preset.vocab_size * preset.hidden_size,
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
            "bench": "pretrain",
            "sizes": asdict(preset),
            "parameters": parameters,
            "attention": {"packed": trunk.attention, "padded": attention},
            "machine": machine(preset.device),
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
    ceiling, seconds, cpu_seconds, losses = 0.0, {}, {}, {}
    for name in TRAINERS:
        ceiling = max(ceiling, matmul_ceiling(preset, seconds=0.5))
        synchronize(preset.device)
        start, cpu_start = time.perf_counter(), time.process_time()
        losses[name] = work[name]()
        synchronize(preset.device)
        seconds[name] = time.perf_counter() - start
        cpu_seconds[name] = time.process_time() - cpu_start
    packed = [ids.shape[1] for ids, _ in micro_batches]
    if packed != ours.seen:
        raise RuntimeError(f"the trunk got micro-batches of {packed} tokens, ours {ours.seen}")
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


if __name__ == "__main__":
    main()
