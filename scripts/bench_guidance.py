"""What does a guided step cost, beside the policy alone and beside two forwards of the LenVM?

    python scripts/bench_guidance.py --json guidance.json
    python scripts/bench_guidance.py --shapes demo --requests 16 --candidates 15 --profile

Milliseconds per decoding step of five loops, interleaved in rounds in one process:

  policy       one token per request with a key/value cache, and sampling.
  exact        the same with guidance (a tilt of every request) by the exact scorer.
  two_forward  the same with a scorer that runs the LenVM over the sampled token and then over the
               candidates and keeps nothing of those, as the method's reference does; it shares
               the exact scorer's cache, attention and layout.
  q_head       the same with a candidate head on the LenVM's trunk, one token per request.
  policy_head  the same with a candidate head on the policy's own hidden states, no second model.

Weights that are missing are random: what a step costs does not depend on them.

Figures are medians over all timed steps, ratios medians over rounds. `scorer_ms` is the scorer's
part of a step, and the ratio of the exact to the two-forward scorer is that of this part; beside it
stand that of processor time, which other load on the machine disturbs less, and that of whole
steps. The second forward runs one token per request: what it costs beside K candidates is a reading
of the weights and the calls of the kernels, so the ratio is near one half while these dominate, and
nears K / (K + 1) when requests x K tokens keep the processor busy. `--profile` adds where the time
goes, part by part. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from guidance_cost.loop import Loop, Policy, Timed, cut_prompts
from guidance_cost.report import BARS, show, show_sections, summarize, within_bars
from guidance_cost.scorers import SCORERS
from guidance_cost.sections import where_time_goes
from guidance_cost.shapes import SHAPES, Pair, make_pair
from rich.console import Console

from lenvm_rl.evals.results import finite
from lenvm_rl.rollouts.atomic import replacing

CONSOLE = Console(stderr=True)
_WARM_UP = 2  # steps; the first one reads the prompts


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
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
    line = json.dumps(finite(report(shapes, args)), allow_nan=False)
    if args.json:
        with replacing(args.json) as file:
            file.write_text(line + "\n")
    print(line)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--scorers", nargs="+", choices=SCORERS, default=list(SCORERS))
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--candidates", nargs="+", type=int, default=[5, 15, 40])
    parser.add_argument("--context", type=int, default=256, help="tokens of the longest (256)")
    parser.add_argument("--rounds", type=int, default=10, help="times each loop has its turn (10)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn (3)")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the last line to this file too")
    return parser.parse_args(argv)


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
    machine: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if args.device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    else:
        machine["load_average"] = [round(load, 2) for load in os.getloadavg()]
    return {
        "bench": "guidance",
        "shapes": shapes,
        "bar": {name: most for name, (_, _, most) in BARS.items()},
        "within_bar": within_bars([case for cases in shapes.values() for case in cases]),
        "machine": machine,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
    }


if __name__ == "__main__":
    main()
