"""The cost of a guided step, beside the policy alone and beside two forwards of the LenVM.

    python -m scripts.bench guidance --json guidance.json
    python -m scripts.bench guidance --shapes demo --requests 16 --candidates 15

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
nears K / (K + 1) when requests x K tokens keep the processor busy. `--profile` shows where the time
goes, by torch.profiler. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, Literal

import torch

from scripts.bench import harness
from scripts.bench.harness import CONSOLE, show
from scripts.bench.step_cost.loop import Loop, Policy, Timed, cut_prompts
from scripts.bench.step_cost.pairs import SCORERS, Pair, make_pair

BARS = {
    "exact_to_two_forward": ("exact_to_two_forward", "scorer_ms", 0.7),
    "q_head_to_policy": ("q_head", "step_to_policy", 1.05),
    "policy_head_to_policy": ("policy_head", "step_to_policy", 1.05),
}
"""By name: which figure of a case, of which kind, and the most that it may be."""
_WARM_UP = 2  # steps; the first one reads the prompts


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """Loads, and what is timed."""

    shapes: tuple[Literal["demo", "135m"], ...] = ("demo", "135m")
    """Pairs of policy and LenVM."""
    scorers: tuple[Literal["exact", "two_forward", "q_head", "policy_head"], ...] = tuple(SCORERS)
    """Beside the policy alone."""
    requests: tuple[int, ...] = (1, 4, 16)
    """Requests at once."""
    candidates: tuple[int, ...] = (5, 15, 40)
    """K of each."""
    context: int = 256
    """Tokens of the longest prompt."""
    rounds: int = 10
    """Times each loop has its turn."""
    steps: int = 3
    """Steps of a turn."""
    profile: bool = False
    """Show where the time goes, by operation."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of both models."""
    threads: int = 2
    """On a CPU."""
    seed: int = 0
    """Of random weights."""

    def __post_init__(self) -> None:
        harness.check_device(self.device)


def run(options: Options) -> dict[str, Any]:
    """All loops, by shape and load, and how many pass the bars."""
    torch.set_num_threads(options.threads)
    shapes: dict[str, list[dict[str, Any]]] = {}
    for name in options.shapes:
        dtype = getattr(torch, options.dtype)
        pair = make_pair(name, device=options.device, dtype=dtype, seed=options.seed)
        shapes[name] = [
            measure(pair, requests, candidates, options)
            for requests in options.requests
            for candidates in options.candidates
        ]
        show_cases(name, shapes[name])
    return {
        "shapes": shapes,
        "bar": {name: most for name, (_, _, most) in BARS.items()},
        "within_bar": within_bars([case for cases in shapes.values() for case in cases]),
    }


def measure(pair: Pair, requests: int, candidates: int, options: Options) -> dict[str, Any]:
    """All loops at one load."""
    room = _WARM_UP + (options.rounds + options.profile) * options.steps
    prompts = cut_prompts(pair, requests, options.context)
    loops = {"policy": Loop(Policy(pair, prompts, room), None, candidates)}
    for name in options.scorers:
        scorer = SCORERS[name](pair, requests, options.context + room + 1, candidates)
        timed = Timed(scorer, pair.policy.device)
        loops[name] = Loop(Policy(pair, prompts, room), timed, candidates)
    for loop in loops.values():
        for _ in range(_WARM_UP):
            loop.step()
        loop.forget_times()
    names = list(loops)
    for turn in range(options.rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            for _ in range(options.steps):
                loops[name].step()
    figures = summarize(loops, options.rounds)
    for name, loop in loops.items() if options.profile else ():
        with torch.profiler.profile() as profiler:
            for _ in range(options.steps):
                loop.step()
        CONSOLE.print(f"{name}, {requests} requests, K = {candidates}", highlight=False)
        by_time = f"self_{'cuda' if options.device.startswith('cuda') else 'cpu'}_time_total"
        CONSOLE.print(profiler.key_averages().table(sort_by=by_time, row_limit=20))
    return {"requests": requests, "candidates": candidates, "figures": figures}


def summarize(loops: dict[str, Loop], rounds: int) -> dict[str, Any]:
    """Milliseconds per step of every loop; of its scorer alone, wall and processor time.

    Ratios are taken within each round, whose turns are close in time, and then their median.
    """
    times: dict[str, dict[str, list[float]]] = {}
    for name, loop in loops.items():
        times[name] = {"step_ms": loop.steps}
        if loop.scorer is not None:
            times[name] |= {
                "scorer_ms": loop.scorer.wall,
                "scorer_cpu_ms": loop.scorer.processor,
            }
    figures: dict[str, Any] = {
        name: {kind: round(1e3 * statistics.median(x), 3) for kind, x in by_kind.items()}
        for name, by_kind in times.items()
    }
    for name in loops:
        if name != "policy":
            ratio = _ratio(times[name]["step_ms"], times["policy"]["step_ms"], rounds)
            figures[name]["step_to_policy"] = ratio
    if {"exact", "two_forward"} <= set(loops):
        figures["exact_to_two_forward"] = {
            kind: _ratio(x, times["two_forward"][kind], rounds)
            for kind, x in times["exact"].items()
        }
    return figures


def within_bars(cases: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Name of the bar -> how many cases are within it, of how many that have the figure."""
    counts = {}
    for name, (figure, kind, most) in BARS.items():
        found = [case["figures"][figure][kind] for case in cases if figure in case["figures"]]
        if found:
            counts[name] = [sum(ratio <= most for ratio in found), len(found)]
    return counts


def _ratio(ours: list[float], theirs: list[float], rounds: int) -> float:
    """Median over the rounds; over the whole run where a clock did not move within a round."""
    steps = len(ours) // rounds
    turns = [slice(i * steps, (i + 1) * steps) for i in range(rounds)]
    if all(sum(theirs[t]) > 0 for t in turns):
        return round(statistics.median(sum(ours[t]) / sum(theirs[t]) for t in turns), 3)
    return round(sum(ours) / sum(theirs), 3) if sum(theirs) > 0 else math.nan


def show_cases(shape: str, cases: list[dict[str, Any]]) -> None:
    """One line per load."""
    names = [name for name in cases[0]["figures"] if name not in ("policy", "exact_to_two_forward")]
    lines = []
    for case in cases:
        figures = case["figures"]
        ratio = figures.get("exact_to_two_forward", {})
        lines.append(
            [
                str(case["requests"]),
                str(case["candidates"]),
                f"{figures['policy']['step_ms']:.1f}",
                *(_cell(figures[name]) for name in names),
                f"{ratio['scorer_ms']:.2f}" if ratio else "-",
                f"{ratio['scorer_cpu_ms']:.2f}" if ratio else "-",
            ]
        )
    columns = ("R", "K", "policy", *names, "exact / two", "by CPU time")
    show(f"{shape}: ms per step, whole / scorer (x policy)", columns, lines, left=0)


def _cell(figures: dict[str, float]) -> str:
    step, scorer, times = (figures[k] for k in ("step_ms", "scorer_ms", "step_to_policy"))
    return f"{step:.1f} / {scorer:.1f} ({times:.2f})"
