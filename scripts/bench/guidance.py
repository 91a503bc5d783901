"""What does a guided step cost, beside the policy alone and beside two forwards of the LenVM?

    python -m scripts.bench guidance --json guidance.json
    python -m scripts.bench guidance --shapes demo --requests 16 --candidates 15 --profile
    python -m scripts.bench guidance --floor --device cuda --json guidance-gpu.json

Milliseconds per decoding step of five loops, interleaved in rounds in one process:

  policy       one token per request with a key/value cache, and sampling.
  exact        the same with guidance (a tilt of every request) by the exact scorer.
  two_forward  the same with a scorer that runs the LenVM over the sampled token and then over the
               candidates and keeps nothing of those, as the method's reference does; it shares
               the exact scorer's cache, attention and layout.
  q_head       the same with a candidate head on the LenVM's trunk, one token per request.
  policy_head  the same with a candidate head on the policy's own hidden states, no second model.

Weights that are missing are random. Their distributions are flat, so that all K candidates pass
min_p; on text two or three do, and the exact scorer then costs a CPU less than here.

Figures are medians over all timed steps, ratios medians over rounds. `scorer_ms` is the scorer's
part of a step, and the ratio of the exact to the two-forward scorer is that of this part; beside it
stand that of processor time, which other load on the machine disturbs less, and that of whole
steps. The second forward runs one token per request: what it costs beside K candidates is a reading
of the weights and the calls of the kernels, so the ratio is near one half while these dominate, and
nears K / (K + 1) when requests x K tokens keep the processor busy. `--profile` adds where the time
goes, part by part. The last line of stdout is one JSON object.

`--floor` is another measurement (`step_cost/floor.py`): steps of a LenVM of 1.5 B shape and of a
policy of 7 B shape, in bfloat16, K = 16, context 2,048, 1 to 64 requests, against the time of
reading weights, keys and values once or that of their matrix products, whichever is longer. It has
been run in tiny on a CPU only; its figures are to be measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lenvm_rl.evals.result import finite
from lenvm_rl.rollouts.atomic import replacing
from scripts.bench.step_cost.floor import (
    FLOOR_SHAPES,
    OVERHEAD_BAR,
    STEP_BAR,
    against_the_floor,
    copy_bandwidth,
    product_rate,
)
from scripts.bench.step_cost.loop import Loop, Policy, Timed, cut_prompts
from scripts.bench.step_cost.report import (
    BARS,
    show,
    show_floor,
    show_sections,
    summarize,
    within_bars,
)
from scripts.bench.step_cost.scorers import SCORERS
from scripts.bench.step_cost.sections import where_time_goes
from scripts.bench.step_cost.shapes import SHAPES, Pair, make_pair

CONSOLE = Console(stderr=True)
DEFAULTS = {"requests": [1, 4, 16], "candidates": [5, 15, 40], "context": 256, "dtype": "float32"}
FLOOR_DEFAULTS = {
    "requests": [1, 2, 4, 8, 16, 32, 64],
    "candidates": [16],
    "context": 2048,
    "dtype": "bfloat16",
}
_WARM_UP = 2  # steps; the first one reads the prompts


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    finish(report_floor(args) if args.floor else report(measure_shapes(args), args), args)


def measure_shapes(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """All loops, by shape and load."""
    shapes = {}
    for name in args.shapes:
        dtype = getattr(torch, args.dtype)
        pair = make_pair(name, device=args.device, dtype=dtype, seed=args.seed)
        shapes[name] = [
            measure(pair, requests, candidates, args)
            for requests in args.requests
            for candidates in args.candidates
        ]
        show(name, shapes[name], CONSOLE)
        for case in shapes[name] if args.profile else ():
            title = f"{name}, {case['requests']} requests, K = {case['candidates']}"
            show_sections(title, case["sections"], CONSOLE)
    return shapes


def finish(figures: dict[str, Any], args: argparse.Namespace) -> None:
    """One JSON object, to the file and as the last line."""
    line = json.dumps(finite(figures), allow_nan=False)
    if args.json:
        with replacing(args.json) as file:
            file.write_text(line + "\n")
    print(line)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="On a GPU, steps against the floor of reading and multiplying everything once: "
        "python -m scripts.bench guidance --floor --device cuda --json guidance-gpu.json",
    )
    add = parser.add_argument
    add("--floor", action="store_true", help="1.5 B LenVM and 7 B policy against the floor")
    add("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    add("--scorers", nargs="+", choices=SCORERS, default=list(SCORERS))
    add("--requests", nargs="+", type=int, help="1 4 16; with --floor 1 2 4 8 16 32 64")
    add("--candidates", nargs="+", type=int, help="5 15 40; with --floor 16")
    add("--context", type=int, help="tokens of the longest (256; with --floor 2048)")
    add("--rounds", type=int, default=10, help="times each loop has its turn (10)")
    add("--steps", type=int, default=3, help="steps of a turn (3); --floor: rounds x steps")
    add("--profile", action="store_true", help="show where the time goes")
    add("--device", default="cpu", help="cpu or cuda")
    add("--dtype", choices=("float32", "bfloat16"), help="float32; with --floor bfloat16")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="write the last line to this file too")
    args = parser.parse_args(argv)
    usual = FLOOR_DEFAULTS if args.floor else DEFAULTS
    for name, value in usual.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here; use --device cpu")
    if args.floor and len(args.candidates) > 1:
        parser.error(f"--floor takes one number of --candidates, got {args.candidates}")
    return args


def report_floor(args: argparse.Namespace) -> dict[str, Any]:
    """Steps against the floor, and how many pass the bars."""
    torch.manual_seed(args.seed)
    bandwidth = copy_bandwidth(args.device, mib=1024 if args.device != "cpu" else 64)
    dtype = getattr(torch, args.dtype)
    rate = product_rate(args.device, dtype, size=8192 if args.device != "cpu" else 512)
    CONSOLE.print(f"copy {bandwidth / 1e9:.1f} GB/s, matrix products {rate / 1e12:.2f} TFLOP/s")
    rows = against_the_floor(
        device=args.device,
        dtype=dtype,
        requests=args.requests,
        candidates=args.candidates[0],
        context=args.context,
        steps=args.rounds * args.steps,
        shapes=FLOOR_SHAPES,
        bandwidth=bandwidth,
        rate=rate,
        advance=CONSOLE.print,
    )
    show_floor(rows, CONSOLE)
    return {
        "bench": "guidance_floor",
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "products_tflop_per_s": round(rate / 1e12, 3),
        "rows": rows,
        "bar": {"lenvm_to_floor": STEP_BAR, "overhead": OVERHEAD_BAR},
        "within_bar": {
            name: [sum(row[name] <= most for row in rows), len(rows)]
            for name, most in (("lenvm_to_floor", STEP_BAR), ("overhead", OVERHEAD_BAR))
        },
        **_surroundings(args),
    }


def measure(pair: Pair, requests: int, candidates: int, args: argparse.Namespace) -> dict[str, Any]:
    """All loops at one load."""
    room = _WARM_UP + args.rounds * args.steps + (args.steps if args.profile else 0)
    prompts = cut_prompts(pair, requests, args.context)
    loops = {"policy": Loop(Policy(pair, prompts, room), None, candidates)}
    for name in args.scorers:
        scorer = SCORERS[name](pair, requests, args.context + room + 1, candidates)
        timed = Timed(scorer, pair.policy.device)
        loops[name] = Loop(Policy(pair, prompts, room), timed, candidates)
    for loop in loops.values():
        for _ in range(_WARM_UP):
            loop.step()
        loop.forget_times()
    names = list(loops)
    for turn in range(args.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            for _ in range(args.steps):
                loops[name].step()
    case = {
        "requests": requests,
        "candidates": candidates,
        "figures": summarize(loops, args.rounds),
    }
    if args.profile:
        case["sections"] = {name: where_time_goes(loops[name], args.steps) for name in loops}
    return case


def report(shapes: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> dict[str, Any]:
    """The figures of all shapes and loads, and how many pass the bars."""
    return {
        "bench": "guidance",
        "shapes": shapes,
        "bar": {name: most for name, (_, _, most) in BARS.items()},
        "within_bar": within_bars([case for cases in shapes.values() for case in cases]),
        **_surroundings(args),
    }


def _surroundings(args: argparse.Namespace) -> dict[str, Any]:
    machine: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if args.device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name()
    else:
        machine["load_average"] = [round(load, 2) for load in os.getloadavg()]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return {"machine": machine, "settings": settings}


if __name__ == "__main__":
    main()
