"""What are length predictions worth to a server? Mean and tail latency by order of service.

Completions of a rollout file become requests with their real lengths, arriving at random on a
simulated server (`queueing`). The same requests are served in several orders:

    fcfs               first come, first served
    predicted-P        shortest predicted response first, by predictor P at s_0; none is put back
    remaining-P        shortest predicted remainder first, by P at every state; a running request
                       may be put back until it has written `preempt_until` of its first prediction
    predicted-true, remaining-true      the same with the lengths themselves: perfect knowledge

Predictors: lenvm; linear and survival (`naive`, fitted on training completions); prompt (the mean
length of all samples of the prompt, the request's own among them: a little more than any reader of
the prompt could know); random (a number drawn per request). One order is judged by

    share = (mean latency of fcfs - its own) / (mean latency of fcfs - that of perfect knowledge)

with perfect knowledge under the same rule of putting back: 1 is as good as knowing, 0 is as good as
not caring. Seeds draw requests and arrivals; all orders of a seed serve the same ones. The share is
NaN where fcfs and perfect knowledge do not differ, as on an idle server.

A completion that the token limit cut is served to where it was cut, as by a real server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lenvm_rl.core import predicted_length
from lenvm_rl.evals.prediction.naive import NaivePredictors
from lenvm_rl.evals.prediction.outcome_errors import outcome_errors
from lenvm_rl.evals.scheduling.queueing import Server, poisson_arrivals, serve
from lenvm_rl.evals.scheduling.report import (
    SchedulingReport,
    key_figures,
    measures,
    over_seeds,
)
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits, model_space
from lenvm_rl.model.policy_check import open_rollouts
from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.progress import progress_bar

LOADS = (0.8, 0.95, 1.1, 1.3)
Remaining = list[np.ndarray]
"""For each request [L]: predicted tokens still to come at s_0 .. s_{L-1}."""


@dataclass(frozen=True, kw_only=True)
class SchedulingSettings:
    """What is simulated."""

    loads: Sequence[float] = LOADS
    """Tokens asked for per token that the server can write, each positive."""
    requests: int = 1000
    """Requests per simulation, drawn from the rows (with replacement when there are fewer)."""
    seeds: int = 5
    """Draws of requests and arrivals; the spread is over them."""
    preempt_until: float = 0.8
    """Share of the first prediction after which a request keeps its slot (TRAIL's c); 0: always."""
    server: Server = Server()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 2 or self.seeds < 1 or not self.loads:
            raise ValueError(
                f"{self.requests} requests x {self.seeds} seeds x {len(self.loads)} loads simulate "
                "nothing: give at least 2 requests, 1 seed and 1 load."
            )
        if not self.preempt_until >= 0:
            raise ValueError(f"preempt_until must be at least 0, got {self.preempt_until}.")
        for load in self.loads:
            if not 0 < load < math.inf:
                raise ValueError(f"loads must be positive numbers, got {load}.")


def run_scheduling(
    lenvm: str | Path,
    rollouts: str | Path,
    out: str | Path,
    *,
    train: str | Path | None = None,
    settings: SchedulingSettings | None = None,
    any_policy: bool = False,
    progress: bool = False,
) -> SchedulingReport:
    """Predict, simulate, and save everything into `out`.

    Args:
        lenvm: directory of the value model.
        rollouts: rollout file of prompts it was not trained on.
        out: result directory.
        train: rollout file for the naive predictors; None leaves them out.
        any_policy: accept rollouts of another policy than the LenVM's.
    Raises:
        ValueError: a file of another tokenizer or policy, or rows beyond the LenVM's context.
    """
    model = LengthValueModel.from_pretrained(lenvm)
    reader = open_rollouts(model, rollouts, any_policy=any_policy)
    naive = None
    if train is not None:
        naive = NaivePredictors.of_rollouts(
            open_rollouts(model, train, any_policy=any_policy), gamma=model.config.require_gamma()
        )
    settings = settings or SchedulingSettings()
    rows = list(reader.iter_rows())
    report = simulate_orders(
        rows, predict_remaining(model, rows, naive), settings, progress=progress
    )
    report.save(out)
    return report


def predict_remaining(
    model: LengthValueModel, rows: Sequence[Rollout], naive: NaivePredictors | None = None
) -> dict[str, Remaining]:
    """Every real predictor along every row: lenvm, and linear and survival where fitted."""
    found = {
        (row.prompt_id, row.sample_id): predicted_length(z, **model_space(model)).double().numpy()
        for row, z in iter_logits(model, rows)
    }
    predictions = {"lenvm": [found[row.prompt_id, row.sample_id] for row in rows]}
    if naive is not None:
        for name in ("linear", "survival"):
            predictions[name] = []
        for row in rows:
            written = torch.arange(row.length, dtype=torch.float32)[None]
            guesses = naive.remaining_lengths(torch.tensor([len(row.prompt_ids)]), written)
            for name in ("linear", "survival"):
                predictions[name].append(guesses[name][0].double().numpy())
    return predictions


def simulate_orders(
    rows: Sequence[Rollout],
    predictions: Mapping[str, Remaining],
    settings: SchedulingSettings,
    *,
    progress: bool = False,
) -> SchedulingReport:
    """Serve the same requests in every order, at every load, for every seed.

    Args:
        rows: completions; their lengths are the requests'.
        predictions: for each predictor and row [L] remaining tokens at s_0 .. s_{L-1}.
        settings: loads, seeds, the server.
    """
    lengths = np.array([row.length for row in rows])
    known = {**predictions, **_bars(rows, lengths)}
    runs = []
    total = len(settings.loads) * settings.seeds * len(_orders(known))
    with progress_bar("simulating", total, shown=progress) as advance:
        for load in settings.loads:
            for seed in range(settings.seeds):
                runs += _one_draw(lengths, known, settings, load, seed, advance)
    summary = over_seeds(runs, settings.loads, list(_orders(known)))
    outcomes = torch.as_tensor(lengths, dtype=torch.float64)
    predictors = [
        {"predictor": name, **outcome_errors(torch.tensor([x[0] for x in values]), outcomes)}
        for name, values in known.items()
        if name not in ("true", "survival")
    ]
    tables = {"summary": summary, "runs": runs, "predictors": predictors}
    return SchedulingReport(key_figures(rows, lengths, settings, summary, predictors), tables)


def _bars(rows: Sequence[Rollout], lengths: np.ndarray) -> dict[str, Remaining]:
    """Predictors that no server has: prompt, true."""
    counted_down = [
        np.maximum(1.0, mean - np.arange(n))
        for mean, n in zip(prompt_means(rows), lengths, strict=True)
    ]
    return {"prompt": counted_down, "true": [np.arange(n, 0, -1.0) for n in lengths]}


def prompt_means(rows: Sequence[Rollout]) -> np.ndarray:
    """[N] mean length of the samples of each row's prompt.

    Its own is among them, for leaving it out would rank the samples of one prompt upside down.
    """
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(row.prompt_id, []).append(row.length)
    return np.array([np.mean(groups[row.prompt_id]) for row in rows])


def _orders(known: Mapping[str, Remaining]) -> dict[str, tuple[str, bool]]:
    """Name of each order to (predictor, whether it may put back). `fcfs` comes first."""
    at_start = [name for name in known if name != "survival"]  # the same for all before the start
    at_start.insert(-1, "random")
    along = [name for name in known if name != "prompt"]
    return (
        {"fcfs": ("", False)}
        | {f"predicted-{name}": (name, False) for name in at_start}
        | {f"remaining-{name}": (name, True) for name in along}
    )


def _one_draw(
    lengths: np.ndarray,
    known: Mapping[str, Remaining],
    settings: SchedulingSettings,
    load: float,
    seed: int,
    advance: Any,
) -> list[dict[str, Any]]:
    rng = np.random.default_rng([settings.seed, 2, seed])  # the same draw at every load
    n = settings.requests
    picked = rng.choice(len(lengths), size=n, replace=n > len(lengths))
    drawn = lengths[picked]
    arrival = poisson_arrivals(drawn, load=load, server=settings.server, rng=rng)
    table = []
    for order, (predictor, put_back) in _orders(known).items():
        hold: np.ndarray | float = 0.0
        if not predictor:
            keys = [np.full(k, t) for t, k in zip(arrival, drawn, strict=True)]
        elif predictor == "random":
            keys = [np.full(k, x) for x, k in zip(rng.random(n), drawn, strict=True)]
        else:
            keys = [known[predictor][i] for i in picked]
            if put_back:
                hold = np.floor(settings.preempt_until * np.array([key[0] for key in keys]))
            else:
                keys = [np.full(len(key), key[0]) for key in keys]
        served = serve(arrival, drawn, keys, settings.server, keeps_slot_after=hold)
        table.append({"load": load, "seed": seed, "order": order, **measures(served, drawn)})
        advance(1)
    least = {row["order"]: row["latency_mean"] for row in table}
    for row in table:
        _, put_back = _orders(known)[row["order"]]
        gain = least["fcfs"] - least["remaining-true" if put_back else "predicted-true"]
        row["share"] = (least["fcfs"] - row["latency_mean"]) / gain if gain > 0 else math.nan
    return table
