"""One policy for many budgets: trained once with random ones, and how well it meets four of them.

    python -m scripts.bench budgets --out runs/bench_budgets --jobs 2
    python -m scripts.bench budgets --lenvm DIR --methods l1_exact,lenvm --seeds 2 --updates 20

The shipped policy under GRPO. Every prompt names its budget n* (response tokens, EOS included;
`lenvm_rl.demo.policy_data` says how), drawn once per problem. Same start, data, updates, batch and
seeds; methods differ in the advantage alone:

    l1_exact     GRPO on correct - alpha |n* - L|
    lenvm        A + s A_n, GRPO on the answer plus GAE towards -|L - n*| / n* with the LenVM's
                 expected length as baseline, in units of its own spread; the LenVM learns on from
                 every batch, so that it comes to read the budget too
    lenvm_correct
                 the same with the dense term in right answers alone; against values of all
                 answers (an ablation, see lenvm_rl.core.correct_answers)
    lenvm_frozen `lenvm` with the LenVM that the start has

All start from one pair of policy and LenVM that has seen budgets (`warm_up`). Evaluated beside
them: that policy before training, and the shipped policy, asked without a budget and guided by its
LenVM while it decodes. Each run is one process with one thread; a run that is finished is not run
again, so a bench that was killed goes on.

Writes budgets.json, budgets.jsonl, budgets_rows.csv and budgets.png to --out, one JSON per run and
the start (policy and LenVM, the same for other --alpha and --scale) to --out/runs. The last line of
stdout is one JSON object.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.core import TermSettings
from lenvm_rl.demo import policy_path
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.evals.result import Result
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.sampling.run import Request, Task
from lenvm_rl.sampling.transformers.engine import TransformersEngine
from lenvm_rl.sampling.transformers.sampler import Completion
from reward_fns import LENGTH_REWARDS
from scripts.bench import harness
from scripts.bench.grpo.methods import IN_STD, Graded, rewards_of, task_advantage, with_term
from scripts.bench.grpo.training import EVAL_SEED, Settings, World, lenvm_of, policy_of, train
from scripts.bench.grpo.warm_up import Start, asked, warm_up
from scripts.bench.harness import CONSOLE, part, show
from scripts.bench.plots import plot_budgets
from scripts.bench.pool import one_thread, run_missing

METHODS = ("l1_exact", "lenvm", "lenvm_correct", "lenvm_frozen")
UNTRAINED = ("start", "guided")
"""The policy that training starts from; and the shipped one, guided."""
FIGURES = ("deviation", "bias", "length", "accuracy", "share_truncated")
LONGEST_PROMPT = 35  # tokens
WARM_UP = ("max_tokens", "warm_problems", "warm_epochs", "warm_rate")
"""Settings that the start depends on."""


@dataclass(frozen=True, kw_only=True)
class BudgetSettings(Settings):
    """What all runs share."""

    updates: int = 40
    """Updates per run."""
    pool: int = 1024
    """Different training prompts, seen in epochs."""
    eval_prompts: int = 48
    """Held-out problems, each at every budget."""
    eval_samples: int = 4
    """Completions of each."""
    low: int = 20
    """Training budgets are drawn from here ..."""
    high: int = 200
    """... to here."""
    budgets: tuple[int, ...] = (30, 60, 120, 180)
    """Budgets that every held-out problem is evaluated at."""
    alpha: float = 0.003
    """l1_exact: reward per token of deviation."""
    scale: float = 0.3
    """lenvm: weight of the dense term."""
    warm_problems: int = 1536
    """Problems of the warm-up."""
    warm_epochs: int = 4
    """Passes over their right answers."""
    warm_rate: float = 1e-3
    """Learning rate there."""


@dataclass(frozen=True, kw_only=True)
class Options(BudgetSettings, harness.Options):
    """The comparison."""

    methods: str = "l1_exact,lenvm,lenvm_correct"
    """Comma-separated; some of l1_exact, lenvm, lenvm_correct, lenvm_frozen."""
    seeds: int = 3
    """Runs per method."""
    jobs: int = 1
    """Runs at a time."""
    out: Path = Path("runs/bench_budgets")
    """Results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.methods.split(",")) - set(METHODS))
        if unknown:
            raise ValueError(f"--methods {','.join(unknown)}: use some of {','.join(METHODS)}.")


def run(options: Options) -> dict[str, Any]:
    """The start, all runs that are not there yet, the table and the figure."""
    settings = part(options, BudgetSettings)
    folder = settings.folder(options.out / "runs")
    CONSOLE.print("the start of all methods: policy and LenVM on hindsight budgets")
    one_thread()
    start = warm_up(
        settings,
        options.out / "runs" / f"start-{settings.fingerprint(WARM_UP)}",
        problems=settings.warm_problems,
        epochs=settings.warm_epochs,
        learning_rate=settings.warm_rate,
    )
    trained = [(m, s) for s in range(options.seeds) for m in options.methods.split(",")]
    todo = [(m, 0) for m in UNTRAINED] + trained
    files = {folder / f"{m}-{s}.json": (m, s, settings, start) for m, s in todo}
    runs = run_missing(one_run, files, jobs=options.jobs)
    rows = budget_rows(runs)
    figures = {
        "runs": len(runs),
        "run_minutes": sum(r["seconds"] for r in runs) / 60,
        "rows": rows,
        "settings": harness.settings(options),
    }
    Result("budgets", figures, {"rows": rows}).save(options.out)
    plot_budgets(rows, options.out / "budgets.png")
    show(
        "trained once, asked for several budgets",
        ("method", "budget", "length", "deviation", "bias", "accuracy", "truncated"),
        (
            [
                row["method"],
                str(row["budget"]),
                f"{row['length']:.1f}",
                f"{100 * row['deviation']:.1f}"
                + (f" ± {100 * row['deviation_std']:.1f} %" if row["deviation_std"] else " %"),
                f"{100 * row['bias']:+.1f} %",
                f"{100 * row['accuracy']:.1f} %",
                f"{100 * row['share_truncated']:.1f} %",
            ]
            for row in rows
        ),
    )
    return figures


def budget_world(settings: BudgetSettings) -> World:
    """Training problems with one random budget each, held-out ones with each of `budgets`."""
    rng = random.Random("budgets")
    pool = _asked(
        demo_prompts(settings.pool, seed=17), lambda: [rng.randint(settings.low, settings.high)]
    )
    texts = {str(prompt.messages) for prompt in demo_prompts(settings.pool, seed=17)}
    fresh = demo_prompts(2 * settings.eval_prompts, seed=EVAL_SEED)
    unseen = [prompt for prompt in fresh if str(prompt.messages) not in texts]
    held = _asked(unseen[: settings.eval_prompts], lambda: settings.budgets)
    columns = {prompt.prompt_id: {"target": float(n)} for prompt, n in pool + held}
    return World(settings, columns, ([p for p, _ in pool], [p for p, _ in held]))


def _asked(prompts: Sequence[Prompt], budgets: Any) -> list[tuple[Prompt, int]]:
    """The prompts with the budgets of `budgets()`, one for each."""
    return [
        (replace(asked(prompt, n), prompt_id=f"{prompt.prompt_id}-{n}"), n)
        for prompt in prompts
        for n in budgets()
    ]


def advantage_of(method: str, settings: BudgetSettings):
    """The method's [B, T] advantage of a graded batch."""
    bound = LENGTH_REWARDS["l1_exact"].bind(alpha=settings.alpha)

    def l1_exact(batch: Graded) -> torch.Tensor:
        return task_advantage(rewards_of(batch, bound), batch.prompt_ids)[:, None] * batch.mask

    def lenvm(batch: Graded) -> torch.Tensor:
        term = TermSettings(use="budget", budget_kind="equal", lam=settings.lam, **IN_STD)
        return with_term(
            batch,
            term,
            scale=settings.scale,
            budget=targets(batch),
            in_correct=method == "lenvm_correct",
        )

    return l1_exact if method == "l1_exact" else lenvm


def targets(batch: Graded) -> torch.Tensor:
    """[B] budgets in tokens."""
    return torch.tensor([batch.columns[p]["target"] for p in batch.prompt_ids])


def deviation(batch: Graded) -> dict[str, float]:
    """Mean |L - n*| / n* of a batch, in units of the budget."""
    n = targets(batch)
    return {"deviation": ((torch.tensor(batch.lengths) - n).abs() / n).mean().item()}


def one_run(method: str, seed: int, settings: BudgetSettings, start: Start) -> dict[str, Any]:
    """Train and evaluate under one method; those of `UNTRAINED` are evaluated alone.

    Deterministic given its arguments and the number of threads.
    """
    started = time.monotonic()
    world, history = budget_world(settings), []
    if method == "guided":
        completions = guided(world, settings)
    else:
        policy = policy_of(start.policy)
        if method not in UNTRAINED:
            policy, history = train(
                world,
                seed,
                advantage_of(method, settings),
                refreshes=method in ("lenvm", "lenvm_correct"),
                measure=deviation,
                policy=policy,
                lenvm=lenvm_of(start.lenvm),
            )
        completions = world.sample(policy, world.held, settings.eval_samples, seed=EVAL_SEED)
    return {
        "method": method,
        "seed": seed,
        "budgets": figures_of(world, completions, settings),
        "seconds": round(time.monotonic() - started, 1),
        "history": history,
    }


def guided(world: World, settings: BudgetSettings) -> list[Completion]:
    """Completions of the untrained policy, asked without a budget and guided to meet it."""
    longest = LONGEST_PROMPT + settings.max_tokens
    engine = TransformersEngine.load(
        policy_path(), settings.lenvm, max_length=longest, max_batch=64
    )
    drawn = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    requests: list[Request] = []
    for prompt in world.held:
        content = prompt.messages[0]["content"].split(" tokens: ")[1]
        plain = replace(prompt, messages=[{"role": "user", "content": content}])
        target = int(world.columns[prompt.prompt_id]["target"])
        task = Task(
            prompt_id=prompt.prompt_id,
            prompt_ids=encode_prompt(world.tokenizer, plain),
            n=settings.eval_samples,
            max_tokens=settings.max_tokens,
            guidance=GuidanceSettings(mode="equal", target=target, count_eos=True),
        )
        for sample_id in range(task.n):
            seed = EVAL_SEED + len(requests)
            sampling = {**drawn, "max_tokens": task.max_tokens, "seed": seed}
            requests.append(
                Request(task=task, sample_id=sample_id, sampling=sampling, guidance=task.guidance)
            )
    rows = {(row.prompt_id, row.sample_id): row for row in engine(iter(requests), 0)}
    done = [rows[request.key] for request in requests]
    return [Completion(row.response_ids, row.finish_reason, []) for row in done]


def figures_of(
    world: World, completions: Sequence[Completion], settings: BudgetSettings
) -> list[dict[str, float]]:
    """Per budget n*, of its completions: mean |L - n*| / n*, mean (L - n*) / n*, mean length,
    accuracy and the share that was truncated."""
    owners = [p for p in world.held for _ in range(settings.eval_samples)]
    rows = []
    for n in settings.budgets:
        mine = [
            (owner, completion)
            for owner, completion in zip(owners, completions, strict=True)
            if world.columns[owner.prompt_id]["target"] == n
        ]
        off = [(len(completion.token_ids) - n) / n for _, completion in mine]
        rows.append(
            {
                "budget": n,
                "deviation": statistics.fmean(map(abs, off)),
                "bias": statistics.fmean(off),
                "length": statistics.fmean(len(c.token_ids) for _, c in mine),
                "accuracy": statistics.fmean(float(world.right(p, c)) for p, c in mine),
                "share_truncated": statistics.fmean(
                    float(c.finish_reason != "stop") for _, c in mine
                ),
            }
        )
    return rows


def budget_rows(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method and budget, and one with budget "all": the mean over budgets.

    Every figure is the mean over seeds, `_std` its standard deviation (None for one seed).
    """
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        for i, first in enumerate(mine[0]["budgets"]):
            rows.append(_row(method, first["budget"], [run["budgets"][i] for run in mine]))
        means = [
            {name: statistics.fmean(cell[name] for cell in run["budgets"]) for name in FIGURES}
            for run in mine
        ]
        rows.append(_row(method, "all", means))
    return rows


def _row(method: str, budget: int | str, cells: Sequence[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "budget": budget, "seeds": len(cells)}
    for name in FIGURES:
        values = [cell[name] for cell in cells]
        row[name] = statistics.fmean(values)
        row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return row
