"""What guidance costs inside vLLM: requests/s and tokens/s on real text, beside the policy alone.

    python -m scripts.bench engine --policy DIR --lenvm DIR --prompts ifeval:48 --json engine.json
    python -m scripts.bench engine --lenvm DIR --heads LENVM_HEAD POLICY_HEAD --streams 1 16

One engine after the other in this process (`lenvm_rl.vllm.offline`), each with room for the most
streams: `none` without the processor, then one for each LenVM. An engine answers the same prompts
at every number of streams: as a response ends the next prompt is taken, and responses end as they
do. The first pass of an engine warms it up and is not timed.

Modes: `off` is the guided engine with unguided requests, what the processor alone costs. The modes
with a target ask for `--target` tokens, so responses have other lengths than unguided ones:
tokens/s compare the work, requests/s what a user gets. `times` is the engine's tokens/s as a share
of those of `none` at the same streams. CPU seconds per 1,000 tokens, of this process and what it
started, stand beside: other load on the machine disturbs them less. The last line of stdout is one
JSON object.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from lenvm_rl.demo.prompts import resolve_policy, resolve_prompts
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.model import find_lenvm, load_tokenizer
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import Rollout
from lenvm_rl.sampling.encoding import tasks_of_prompts
from lenvm_rl.sampling.run import Failure, SamplingRun, Task, TokenSampling
from scripts.bench import harness
from scripts.bench.harness import CONSOLE, Failed, show
from scripts.bench.serving import stop

NUMBERS: dict[str, dict[str, Any]] = {"tilt": {"beta": -10.0}, "scale": {"scale": 0.7}}
"""Strength of the modes without a target."""


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """The load."""

    policy: str = "demo"
    """Directory, hub name, or demo."""
    lenvm: str = "demo"
    """Value model for the exact scorer."""
    heads: tuple[str, ...] = ()
    """Candidate heads, timed in the same way: directories."""
    prompts: str = "demo:48"
    """Prompts: a file, demo:COUNT, or a set."""
    streams: tuple[int, ...] = (1, 4, 16)
    """Responses at once."""
    requests: int = 3
    """Responses for every stream: 16 streams answer 48 prompts."""
    modes: tuple[str, ...] = ("off", "tilt", "scale", "equal", "at_most", "at_least")
    """Guided engines: what they are asked for."""
    target: int = 64
    """Tokens that equal, at_most and at_least ask for."""
    max_tokens: int = 128
    """Longest response."""
    rounds: int = 1
    """Times every mode is timed, in turn with the others; the medians are shown."""
    top_k: int = 20
    """Candidates."""
    min_p: float = GuidanceSettings.min_p
    """Their least share of the most probable one's probability."""
    dtype: str = "auto"
    """Of policy and LenVM: auto, float32, bfloat16."""
    seed: int = 0
    """Of prompts and samples."""

    def __post_init__(self) -> None:
        for name in ("streams", "requests", "target", "max_tokens", "rounds"):
            given = getattr(self, name)
            least = min(given, default=0) if name == "streams" else given
            if least < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {given}.")
        if not set(self.modes) - {"off"}:
            raise ValueError("--modes off alone guides nothing: name one beside it, e.g. off tilt.")
        for mode in self.modes:
            self.guidance(mode)

    def guidance(self, mode: str) -> GuidanceSettings:
        """What a mode asks for. Raises ValueError for one that there is not."""
        number: dict[str, Any] = {}
        if mode != "off":
            number = NUMBERS.get(mode, {"target": self.target})
        return GuidanceSettings(mode=mode, top_k=self.top_k, min_p=self.min_p, **number)


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Rows by engine, mode and streams so far; whole ones last."""
    os.environ.setdefault(
        "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
    )  # one process, one count of seconds
    policy = resolve_policy(options.policy)
    most = max(options.streams) * options.requests
    prompts = resolve_prompts(options.prompts, seed=options.seed, limit=most)
    lenvms = {"exact": options.lenvm}
    lenvms |= {f"head {Path(name).name}": name for name in options.heads}
    places = {name: find_lenvm(place, option="--lenvm") for name, place in lenvms.items()}
    rows: list[dict[str, Any]] = []
    for name, lenvm in [("none", None), *places.items()]:
        for row in engine_rows(name, policy, lenvm, prompts, options):
            free = next((r for r in [*rows, row] if _is_plain(r, row["streams"])), None)
            row["times"] = free and round(row["tokens_per_s"] / free["tokens_per_s"], 3)
            rows.append(row)
            yield {"rows": rows}
    show_rows(rows)
    yield {"rows": rows, "prompts": len(prompts)}


def _is_plain(row: dict[str, Any], streams: int) -> bool:
    return row["engine"] == "none" and row["streams"] == streams


def engine_rows(
    name: str, policy: str, lenvm: Any, prompts: Sequence[Prompt], options: Options
) -> Iterator[dict[str, Any]]:
    """Start one engine, warm it up, and time every mode at every number of streams.

    Args:
        lenvm: of the engine; None: vLLM as it is.
    """
    from lenvm_rl.vllm.offline import VllmEngine, complete
    from lenvm_rl.vllm.sample import VllmSettings, open_engine

    tokenizer = load_tokenizer(policy)
    settings = VllmSettings(
        max_num_seqs=max(options.streams),
        engine_args=json.dumps({} if options.dtype == "auto" else {"dtype": options.dtype}),
    )
    modes = {"off": None} if lenvm is None else {m: options.guidance(m) for m in options.modes}
    asked = {
        mode: tasks_of_prompts(
            tokenizer,
            prompts,
            n=1,
            max_tokens=options.max_tokens,
            guidance=guide,
        )
        for mode, guide in modes.items()
    }
    widest = max(asked.values(), key=lambda tasks: any(task.steered_by for task in tasks))
    made = open_engine(policy, tokenizer, widest, lenvm=lenvm, seed=options.seed, settings=settings)
    assert isinstance(made, VllmEngine)
    llm = made.start(resumed=0)
    plain = TokenSampling(top_k=options.top_k, min_p=options.min_p)
    facts = vars(made.facts)

    def answers(tasks: Sequence[Task], streams: int) -> Iterator[Rollout | Failure]:
        drawn = TokenSampling() if tasks[0].steered_by else plain
        planned = SamplingRun(tasks=tasks, **facts, **vars(drawn))
        return complete(llm, planned.missing(set()), ahead=streams)

    try:
        for tasks in asked.values():
            list(answers([replace(task, max_tokens=8) for task in tasks[:2]], 2))
        for streams in options.streams:
            few = {mode: tasks[: streams * options.requests] for mode, tasks in asked.items()}
            found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in few}
            for _ in range(options.rounds):
                for mode, tasks in few.items():
                    found[mode].append(timed(lambda t=tasks, n=streams: list(answers(t, n))))
            for mode, rounds in found.items():
                row = {"engine": name, "mode": mode if lenvm else "-", "streams": streams}
                yield {**row, **{key: median(r[key] for r in rounds) for key in rounds[0]}}
                CONSOLE.print(row, highlight=False)
    finally:
        stop(llm)


def timed(work: Callable[[], list[Rollout | Failure]]) -> dict[str, Any]:
    """Rates of what `work` returns.

    Raises:
        Failed: a request that the engine refused.
    """
    started, before = time.monotonic(), _processor_seconds()
    found = work()
    seconds, spent = time.monotonic() - started, _processor_seconds() - before
    for one in found:
        if isinstance(one, Failure):
            raise Failed(f"prompt {one.task.prompt_id!r}: {one.kind}: {one.detail}")
    tokens = sum(len(one.response_ids) for one in found if isinstance(one, Rollout))
    return {
        "requests": len(found),
        "mean_tokens": round(tokens / len(found), 1),
        "seconds": round(seconds, 2),
        "requests_per_s": round(len(found) / seconds, 3),
        "tokens_per_s": round(tokens / seconds, 2),
        "cpu_s_per_1000_tokens": round(1000 * spent / tokens, 2),
    }


def _processor_seconds() -> float:
    """Of this process, its threads, and the children that have ended."""
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def show_rows(rows: Sequence[dict[str, Any]]) -> None:
    """One line per engine, mode and number of streams."""
    names = ("engine", "mode", "streams", "mean_tokens", "requests_per_s", "tokens_per_s")
    names = (*names, "times", "cpu_s_per_1000_tokens")
    lines = [[str(row[name]) for name in names] for row in rows]
    show("vLLM with and without guidance", names, lines, left=2)
