"""What the length term costs at real sizes: seconds and memory, beside a plain computation.

    python -m scripts.bench length_term
    python -m scripts.bench length_term --rows 2048 --width 32000

`rows` completions of a mean of a third of `width` tokens, 16 to a prompt, on one thread, as in a
worker of the length critic that has the whole batch; a batch that lies on W workers costs each a
W-th. The term is that of correct answers: refit, A_len, its unit, clamp, metrics.

`agreement` is the largest difference, on a batch of 256 rows, to the recursion written down column
by column on padded tensors.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    Rows,
    TermSettings,
    error_sums,
    length_advantage,
    length_term,
    length_to_logit,
    read_critic,
    shortest_of_group,
)
from scripts.bench import harness
from scripts.bench.harness import show

SIZES = ((2048, 4000), (8192, 4000), (2048, 32000))
BAR = (8192, 4000)
SECONDS, GIGABYTES = 1.0, 1.0
GROUP = 16


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """Which batch; without rows and width those of the figures, each in a process of its own."""

    rows: int | None = None
    """Completions."""
    width: int | None = None
    """Tokens of the longest; the mean is a third of it."""
    seed: int = 0
    """Of lengths and values."""

    def __post_init__(self) -> None:
        if (self.rows is None) != (self.width is None):
            raise ValueError("--rows and --width belong together: give both or neither.")


@dataclass(frozen=True)
class Batch:
    """What a worker has of a step: tokens [N] of B rows."""

    rows: Rows
    logits: Tensor
    end_logits: Tensor
    task: Tensor
    finished: Tensor
    correct: Tensor
    groups: Tensor
    gamma: float

    @classmethod
    def make(cls, count: int, width: int, seed: int) -> Batch:
        """Log-normal lengths, one in fifty truncated, half of the answers right."""
        rng = torch.Generator().manual_seed(seed)
        lengths = torch.randn(count, generator=rng).mul(0.5).exp().mul(width / 3 / 1.13)
        lengths = lengths.long().clamp(1, width)
        rows = Rows(lengths)
        gamma = 0.01 ** (1 / width)
        noise = torch.randn(len(rows), generator=rng).mul_(0.3)
        logits = noise.add_(length_to_logit(1.5 * rows.left.float(), gamma=gamma))
        correct = (torch.rand(count, generator=rng) < 0.5).float()
        return cls(
            rows,
            logits,
            torch.zeros(count),
            rows.spread(torch.randn(count, generator=rng) + correct),
            torch.rand(count, generator=rng) > 0.02,
            correct,
            torch.arange(count) // GROUP,
            gamma,
        )


def term_of(batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """[N] advantages and their metrics, as a length critic's worker makes them."""
    critic = SimpleNamespace(
        gamma=batch.gamma, target="return", length_scale=None, answers="correct"
    )
    settings = TermSettings(applies_to="correct", normalise="batch_std")
    known = (batch.rows, batch.finished)
    estimate, _ = read_critic(
        critic, batch.logits, batch.end_logits, *known, batch.correct, refit=True
    )
    sums = error_sums(batch.rows, estimate.values, estimate.left, gamma=batch.gamma)
    ranking = shortest_of_group(estimate.left, *known, batch.groups)
    term = length_term(
        settings,
        estimate,
        *known,
        batch.task,
        gamma=batch.gamma,
        scale=1.0,
        correct=batch.correct,
        groups=batch.groups,
        baseline="correct",
    )
    return term.total, {**term.metrics, "tokens": float(sums[:, 0].sum()), "rank": ranking.accuracy}


def by_columns(values: Tensor, end: Tensor, lengths: Tensor, gamma: float, lam: float) -> Tensor:
    """[B, T] A_len by its recursion, one column after another."""
    padded = torch.nn.functional.pad(values.double(), (0, 1))
    padded[torch.arange(len(lengths)), lengths] = end.double()
    out = torch.zeros(values.shape, dtype=torch.float64)
    later = torch.zeros(len(lengths), dtype=torch.float64)
    for t in reversed(range(values.shape[1])):
        delta = gamma * padded[:, t + 1] - padded[:, t] - (1 - gamma)
        later = torch.where(t < lengths, delta + gamma * lam * later, 0.0)
        out[:, t] = later
    return out


def agreement(width: int, seed: int) -> float:
    """Largest difference between `length_advantage` and `by_columns`."""
    batch = Batch.make(256, width, seed)
    lengths, values = batch.rows.lengths, -torch.sigmoid(batch.logits)
    end = torch.where(batch.finished, 0.0, -torch.sigmoid(batch.end_logits))
    mask = torch.arange(width)[None] < lengths[:, None]
    padded = torch.zeros(mask.shape).masked_scatter(mask, values)
    found = length_advantage(
        values, batch.rows, batch.finished, gamma=batch.gamma, lam=0.999, end_value=end
    )
    wanted = by_columns(padded, end, lengths, batch.gamma, 0.999)[mask]
    return float((found - wanted).abs().max())


def measure(count: int, width: int, seed: int) -> dict[str, float]:
    """Seconds, and the peak of resident memory above that of the batch itself."""
    torch.set_num_threads(1)
    term_of(Batch.make(64, 64, seed))  # what is imported and allocated once
    batch = Batch.make(count, width, seed)
    before = resident()
    started, spent = time.perf_counter(), time.process_time()
    total, _ = term_of(batch)
    assert total.isfinite().all()
    return {
        "rows": count,
        "width": width,
        "tokens": len(batch.rows),
        "seconds": time.process_time() - spent,
        "wall_seconds": time.perf_counter() - started,
        "gigabytes": peak() - before,
    }


def resident() -> float:
    """Gigabytes that this process holds; its peak starts anew here."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak()


def peak() -> float:
    """Gigabytes of the highest resident memory."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def run(options: Options) -> dict[str, Any]:
    """One size here, or all of them, each in a process of its own."""
    if options.rows is not None and options.width is not None:
        return measure(options.rows, options.width, options.seed)
    sizes = [alone(count, width, options.seed) for count, width in SIZES]
    show(
        "the length term on one thread, the whole batch on one worker",
        ("rows", "longest", "tokens", "CPU s", "s", "GB"),
        (
            [
                *(f"{size[name]:,.0f}" for name in ("rows", "width", "tokens")),
                *(f"{size[name]:.2f}" for name in ("seconds", "wall_seconds", "gigabytes")),
            ]
            for size in sizes
        ),
    )
    off = agreement(1000, options.seed)
    (judged,) = (size for size in sizes if (size["rows"], size["width"]) == BAR)
    passed = judged["seconds"] <= SECONDS and judged["gigabytes"] <= GIGABYTES and off <= 1e-6
    return {"sizes": sizes, "agreement": off, "passed": passed}


def alone(count: int, width: int, seed: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    code = (
        f"from scripts.bench.length_term import measure; print(measure({count}, {width}, {seed}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise harness.Failed(done.stderr[-2000:])
    return eval(done.stdout.splitlines()[-1])  # a dictionary of numbers that `measure` printed
