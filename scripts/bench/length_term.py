"""What the length term costs at real sizes: seconds and memory of the trainer and of a worker.

    python -m scripts.bench length_term
    python -m scripts.bench length_term --rows 2048 --width 32000

`rows` completions of a mean of a third of `width` tokens, 16 to a prompt, one thread. The trainer
knows a few numbers of each: it splits them over `workers` workers of the length critic, hands each
its share, and puts together what they report. A worker makes the term of its share from its LenVM's
outputs: errors and ranking, refit, A_len against values of correct answers, its unit, the clamp.
Memory is the peak above what the process held before.

`agreement` is the largest difference, on a batch of 256 rows, to the recursion written down column
by column on padded tensors.
"""

from __future__ import annotations

import ast
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

from lenvm_rl.core import (
    Ranking,
    Rows,
    TermSettings,
    error_sums,
    length_advantage,
    length_term,
    length_to_logit,
    read_critic,
    shortest_of_group,
)
from lenvm_rl.verl.rl.length_critic import LengthCritic
from lenvm_rl.verl.rl.length_step import Plan, Report, Share
from lenvm_rl.verl.rl.policy_metrics import critic_metrics, length_metrics
from lenvm_rl.verl.rl.rollout_batch import read_rollouts
from lenvm_rl.verl.rl.step_data import QueueData, RowFacts
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
    workers: int = 8
    """Data-parallel workers of the length critic."""
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


def measure(count: int, width: int, workers: int, seed: int) -> dict[str, float]:
    """CPU seconds and gigabytes of the trainer, and of a worker that has its share of the rows."""
    torch.set_num_threads(1)
    # What is imported and allocated once.
    trainer_part(Batch.make(64, 64, seed).rows.lengths, workers)
    term_of(Batch.make(64, 64, seed))
    lengths = Batch.make(count, width, seed).rows.lengths
    share = Batch.make(count // workers, width, seed)
    of_trainer = cost(lambda: trainer_part(lengths, workers))
    of_worker = cost(lambda: term_of(share))
    named = {"trainer": of_trainer, "worker": of_worker}
    return {
        "rows": count,
        "width": width,
        "tokens": int(lengths.sum()),
        **{f"{who}_{unit}": x for who, found in named.items() for unit, x in found.items()},
    }


def cost(work: Callable[[], object]) -> dict[str, float]:
    """CPU seconds, and the peak of resident memory above that before."""
    before, spent = resident(), time.process_time()
    work()
    return {"seconds": time.process_time() - spent, "gigabytes": peak() - before}


class Workers:
    """Stands for the workers of a length critic: takes shares, tells a few numbers of each row."""

    def __init__(self, lengths: Tensor):
        self._lengths = lengths

    def row_facts(self, parts: Sequence[QueueData]) -> list[RowFacts]:
        """Facts of the rows that the keys number."""
        sent(parts)
        return [self._facts([int(key.split("_")[1]) for key in part.keys]) for part in parts]

    def length_step(self, parts: Sequence[Share], *_: Any) -> list[Report]:
        """Reports of the right shapes."""
        sent(parts)
        return [
            Report(torch.ones(len(share.data.keys), 4), Ranking(0.5, 0.1, 1)) for share in parts
        ]

    def _facts(self, rows: list[int]) -> RowFacts:
        lengths = self._lengths[rows]
        names = [f"{row:016x}" for row in rows]
        return RowFacts(lengths, lengths, torch.ones(len(rows)), torch.ones_like(lengths), names)


def sent(parts: Sequence[Any]) -> None:
    """What Ray makes of the arguments of a call, for every worker."""
    for _ in parts:
        pickle.dumps(parts)


class Columns(QueueData):
    """The columns of objects that the trainer reads."""

    def read(self, *names: str) -> TensorDict:
        """What the reward function said of every row."""
        extra = [{"reward_extra_info": {"acc": 1.0}} for _ in self.keys]
        return tu.get_tensordict({"extra_fields": extra})


def trainer_part(lengths: Tensor, workers: int) -> dict[str, float]:
    """A step as far as it goes through the trainer."""
    keys = [f"{i // GROUP:036d}_{i}_0" for i in range(len(lengths))]
    critic = object.__new__(LengthCritic)
    critic.workers, critic._balance, critic._multiple = Workers(lengths), True, 1
    critic._ranks, critic._parts = list(range(workers)), workers
    critic.model = SimpleNamespace(
        gamma=0.999, target="return", length_scale=None, answers="correct"
    )
    meta = KVBatchMeta(partition_id="train", keys=keys, tags=[{} for _ in keys])
    rollouts = read_rollouts(meta, eos={1}, facts_of=critic.facts, plane=Columns)
    report = critic.step(rollouts, Plan(settings=TermSettings(), scale=1.0))
    return {**length_metrics(rollouts), **critic_metrics(rollouts, report)}


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
        return measure(options.rows, options.width, options.workers, options.seed)
    sizes = [alone(count, width, options.workers, options.seed) for count, width in SIZES]
    names = [f"{who}_{unit}" for who in ("trainer", "worker") for unit in ("seconds", "gigabytes")]
    show(
        f"the length term with {options.workers} workers, CPU seconds and GB",
        ("rows", "longest", "tokens", "trainer s", "GB", "a worker s", "GB"),
        (
            [
                *(f"{size[name]:,.0f}" for name in ("rows", "width", "tokens")),
                *(f"{size[name]:.3f}" for name in names),
            ]
            for size in sizes
        ),
    )
    off = agreement(1000, options.seed)
    (judged,) = (size for size in sizes if (size["rows"], size["width"]) == BAR)
    enough = judged["trainer_seconds"] <= SECONDS and judged["trainer_gigabytes"] <= GIGABYTES
    passed = enough and off <= 1e-6
    return {"sizes": sizes, "agreement": off, "passed": passed}


def alone(*size: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    code = f"from scripts.bench.length_term import measure; print(measure(*{size}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise harness.Failed(done.stderr[-2000:])
    return ast.literal_eval(done.stdout.splitlines()[-1])
