"""The length term in a world of two branches, where right answers may be the long ones.

    python -m scripts.bench right_answers --short 200 --long 600 --gamma .997 --updates 60
    python -m scripts.bench right_answers --right short
    python -m scripts.bench right_answers --right both        # only the length is left to learn
    python -m scripts.bench right_answers --right long --critic stale --start .125
    python -m scripts.bench right_answers --through trainer   # as main_ppo computes it

A world of two branches: after a preamble and `--short` tokens in all a response ends, or it goes on
to `--long`. `--right` says which of the two ends is right (mostly_long: 30 % of the short and 90 %
of the long ones, where any length term is a trade-off). The policy is the probability of going
on, one number, trained with GRPO and Adam; everything else, values, length terms and their
settings, is the product's own:

    none         GRPO on the answer
    kimi         GRPO on Kimi k1.5's length reward, weight 1
    recommended  the settings of recipes/grpo_length/demo.yaml, played with a LenVM of right answers
                 (baseline=correct) and with one of all answers (baseline=group)
    old          the same term against values of all answers, unbounded, not refitted, lambda .95:
                 what baseline=all, clamp=null, recalibrate=false, lam=0.95 still give

each with three critics: `frozen` knows the policy at the start, `exact` the one at hand, `stale`
expects twice the lengths that the frozen one does. What has no critic is played once.

The last line of stdout is one JSON object; its p_right are means over seeds, those of the length
terms the lowest over critics (and LenVMs).
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from torch import Tensor

from lenvm_rl.core import length_term, length_to_u, read_critic, u_to_length
from lenvm_rl.verl.rl.policy_settings import PolicyLengthSettings
from reward_fns import LENGTH_REWARDS
from scripts.bench import harness, trainer_step
from scripts.bench.grpo.methods import task_advantage
from scripts.bench.harness import part, show

ROOT = Path(__file__).resolve().parents[2]
CRITICS = ("frozen", "exact", "stale")
WORLDS = {"long": (0.0, 1.0), "short": (1.0, 0.0), "both": (1.0, 1.0), "mostly_long": (0.3, 0.9)}
"""Probabilities that a response of the short and of the long branch is right."""
STALE = 2.0  # times as long as the frozen critic says
RATE = 0.1  # of Adam


@dataclass(frozen=True, kw_only=True)
class World:
    """Two ends of a response, and which of them is right."""

    short: int = 200
    """Tokens of a response that stops at the branch."""
    long: int = 600
    """Tokens of one that goes on."""
    jitter: int = 20
    """Each response has a preamble of 0 .. jitter further tokens, which its states tell."""
    right: Literal["long", "short", "both", "mostly_long"] = "long"
    """Which end is right, see WORLDS."""
    start: float = 0.5
    """Probability of going on before training."""
    gamma: float = 0.997
    """Of the LenVM."""
    groups: int = 16
    """Prompts per update."""
    samples: int = 8
    """Responses to each."""
    updates: int = 60
    """Of the policy."""

    def __post_init__(self) -> None:
        if not 0 < self.short < self.long:
            raise ValueError(f"--short {self.short} --long {self.long}: 0 < short < long.")
        if not 0.0 < self.start < 1.0:
            raise ValueError(f"--start {self.start}: a probability between 0 and 1.")

    def p_right(self, p: float) -> float:
        """P(right) where the policy goes on with probability p."""
        of_short, of_long = WORLDS[self.right]
        return p * of_long + (1.0 - p) * of_short

    def p_long_if_right(self, p: float) -> float:
        """P(long | right) there."""
        return p * WORLDS[self.right][1] / self.p_right(p)

    def mean_length(self, p: float) -> float:
        """Tokens of a response, on average."""
        return self.short + p * (self.long - self.short) + self.jitter / 2


@dataclass(frozen=True, kw_only=True)
class Options(World, harness.Options):
    """The world, and who is trained in it."""

    seeds: int = 3
    """Runs of each line."""
    critic: Literal["frozen", "exact", "stale", "all"] = "all"
    """How well the values know the policy."""
    through: Literal["core", "trainer"] = "core"
    """Advantages by the core's functions, or by a step of the trainer mode `lenvm`: verl's GRPO and
    the length critic's workers, on a queue in memory."""


@dataclass(frozen=True)
class Batch:
    """Responses of one update."""

    went_on: Tensor
    """[B] bool."""
    correct: Tensor
    """[B] 1.0 where the answer is right."""
    branch: Tensor
    """[B] tokens up to the branch; the last of them is the decision."""
    lengths: Tensor
    """[B] tokens."""
    groups: Tensor
    """[B] prompt of each."""

    @classmethod
    def sample(cls, world: World, p: float, rng: torch.Generator) -> Batch:
        """Responses of a policy that goes on with probability p."""
        rows = world.groups * world.samples
        went_on = torch.rand(rows, generator=rng) < p
        of_short, of_long = WORLDS[world.right]
        correct = torch.rand(rows, generator=rng) < torch.where(went_on, of_long, of_short)
        branch = world.short + torch.randint(world.jitter + 1, (rows,), generator=rng)
        lengths = branch + went_on * (world.long - world.short)
        groups = torch.arange(world.groups).repeat_interleave(world.samples)
        return cls(went_on, correct.float(), branch, lengths, groups)

    @property
    def mask(self) -> Tensor:
        """[B, T]."""
        return torch.arange(int(self.lengths.max()))[None] < self.lengths[:, None]

    def logits(self, world: World, p: float, *, answers: str, times: float) -> Tensor:
        """[B, T] outputs of a LenVM of `answers` that knows a policy of p.

        The exact E[G | s] or E[G | s, right], as if all lengths were `times` as long.
        """
        t = torch.arange(int(self.lengths.max()), dtype=torch.float64)[None]
        end_short = (self.branch[:, None] - t).clamp(min=0.0)
        end_long = end_short + (world.long - world.short)
        on = world.p_long_if_right(p) if answers == "correct" else p
        u_long = length_to_u(end_long, gamma=world.gamma)
        before = on * u_long + (1.0 - on) * length_to_u(end_short, gamma=world.gamma)
        left = (self.branch + world.long - world.short)[:, None] - t
        beyond = length_to_u(left.clamp(min=1e-6), gamma=world.gamma)
        u = torch.where(t < self.branch[:, None], before, beyond)
        if times != 1.0:
            u = length_to_u(times * u_to_length(u, gamma=world.gamma), gamma=world.gamma)
        return torch.logit(u).float()


def recommended() -> PolicyLengthSettings:
    """The `lenvm:` block that the GRPO recipe of the demo trains with."""
    files = (
        ROOT / "lenvm_rl" / "verl" / "config" / "lenvm_ppo.yaml",
        ROOT / "recipes" / "grpo_length" / "demo.yaml",
    )
    block = OmegaConf.merge(*(OmegaConf.load(file).lenvm for file in files))
    return PolicyLengthSettings(**{**OmegaConf.to_container(block), "checkpoint": "world"})


def old() -> PolicyLengthSettings:
    """The recipe's settings with the term that version 0.1 first had."""
    return replace(recommended(), baseline="all", clamp=None, recalibrate=False, lam=0.95)


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    method: str
    """none, kimi, recommended or old."""
    settings: PolicyLengthSettings | None = None
    """Of the length term, where there is one."""
    answers: str = "all"
    """What the LenVM was trained on."""
    critic: str | None = None
    """One of CRITICS, where there is one."""

    @property
    def baseline(self) -> str | None:
        """Against what a right answer's length is judged."""
        return self.settings.baseline_for(self.answers) if self.settings else None


def arms(critics: tuple[str, ...]) -> list[Arm]:
    """Everything that is compared."""
    played = [Arm("none"), Arm("kimi"), Arm("recommended", recommended())]
    for critic in critics:
        played.append(Arm("recommended", recommended(), "correct", critic))
    return played + [Arm("old", old(), "all", critic) for critic in critics]


def advantages(world: World, arm: Arm, batch: Batch, p: float) -> Tensor:
    """[B, T] of a batch from a policy that goes on with probability p."""
    mask, correct = batch.mask, batch.correct
    names = [str(int(group)) for group in batch.groups]
    rewards = correct.tolist()
    if arm.method == "kimi":
        reward, rows = LENGTH_REWARDS["kimi"].bind(weight=1.0), world.samples
        tokens = batch.lengths.tolist()
        rewards = [
            r
            for i in range(0, len(tokens), rows)
            for r in reward.group_rewards(correct.tolist()[i : i + rows], tokens[i : i + rows])
        ]
    task = task_advantage(rewards, names)[:, None] * mask
    if arm.settings is None:
        return task
    critic = SimpleNamespace(
        gamma=world.gamma, target="return", length_scale=None, answers=arm.answers
    )
    p = p if arm.critic == "exact" else world.start
    times = STALE if arm.critic == "stale" else 1.0
    logits = batch.logits(world, p, answers=arm.answers, times=times)
    done = torch.ones(len(mask), dtype=torch.bool)
    estimate, _ = read_critic(
        critic, logits, None, mask, done, correct, refit=arm.settings.recalibrates
    )
    return length_term(
        arm.settings,
        estimate,
        mask,
        done,
        task,
        gamma=world.gamma,
        scale=arm.settings.make_controller().scale,
        correct=correct,
        groups=batch.groups,
        baseline=arm.settings.baseline_for(arm.answers),
    ).total


def by_trainer(world: World, arm: Arm, batch: Batch, p: float) -> Tensor:
    """As `advantages`, by a step of the trainer mode."""
    settings = arm.settings or recommended()
    if arm.method == "kimi":
        settings = replace(settings, length_reward={"name": "kimi", "weight": 1.0})
    p = p if arm.critic == "exact" else world.start
    times = STALE if arm.critic == "stale" else 1.0
    logits = batch.logits(world, p, answers=arm.answers, times=times)
    responses = trainer_step.Responses(batch.lengths, batch.correct, batch.groups, logits)
    critic = SimpleNamespace(
        gamma=world.gamma, target="return", length_scale=None, answers=arm.answers
    )
    return trainer_step.advantages_of(responses, settings, critic if arm.settings else None)


def train(world: World, arm: Arm, seed: int, through: str = "core") -> float:
    """The probability of going on after training."""
    advantages_of = by_trainer if through == "trainer" else advantages
    rng = torch.Generator().manual_seed(seed)
    logit = torch.logit(torch.tensor(world.start)).requires_grad_()
    optimizer = torch.optim.Adam([logit], lr=RATE)
    for _ in range(world.updates):
        p = torch.sigmoid(logit).item()
        batch = Batch.sample(world, p, rng)
        a = advantages_of(world, arm, batch, p)
        decided = a.gather(1, batch.branch[:, None] - 1)[:, 0]
        sign = torch.where(batch.went_on, 1.0, -1.0)
        loss = -(decided * torch.nn.functional.logsigmoid(sign * logit)).sum() / batch.mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.sigmoid(logit).item()


def play(world: World, arm: Arm, seeds: int, through: str) -> dict[str, Any]:
    """One line of the table: means over seeds, and the lowest P(right)."""
    ends = [train(world, arm, seed, through) for seed in range(seeds)]
    right = [world.p_right(p) for p in ends]
    return {
        "method": arm.method,
        "baseline": arm.baseline,
        "critic": arm.critic,
        "p_right": statistics.fmean(right),
        "p_right_lowest": min(right),
        "p_short": 1.0 - statistics.fmean(ends),
        "length": statistics.fmean(world.mean_length(p) for p in ends),
    }


def run(options: Options) -> dict[str, Any]:
    """All arms; p_right and its like are of each method's worst line."""
    torch.set_num_threads(1)
    world = part(options, World)
    critics = CRITICS if options.critic == "all" else (options.critic,)
    rows = [play(world, arm, options.seeds, options.through) for arm in arms(critics)]
    show(
        f"right answers are {world.right}: {world.short} or {world.long} tokens, "
        f"{world.updates} updates from P(right) = {world.p_right(world.start):.3g}",
        ("method", "baseline", "critic", "P(right)", "lowest seed", "P(short)", "tokens"),
        (
            [
                *(row[name] or "" for name in ("method", "baseline", "critic")),
                *(f"{row[name]:.3f}" for name in ("p_right", "p_right_lowest", "p_short")),
                f"{row['length']:.0f}",
            ]
            for row in rows
        ),
        left=3,
    )
    worst: dict[str, dict[str, Any]] = {}
    for row in rows:
        other = worst.get(row["method"])
        worst[row["method"]] = min(other or row, row, key=lambda row: row["p_right"])
    lowest = {
        name: {method: row[name] for method, row in worst.items()}
        for name in ("p_right", "p_short", "length")
    }
    told = {"critics": list(critics), "recommended": asdict(recommended())}
    return {**lowest, "rows": rows, "settings": told}
