"""Scheduling: mean and tail latency of a simulated server, by order of service.

Completions of a rollout file become requests with their real lengths, arriving at random on a
simulated server (`queueing`). The same requests are served in several orders:

    fcfs               first come, first served
    predicted-P        shortest predicted response first, by predictor P at s_0; none is preempted
    remaining-P        shortest predicted remainder first, by P at every state; a running request
                       may be preempted until it has written `preempt_until` of its first prediction
    predicted-true, remaining-true      the same with the lengths themselves: perfect knowledge

Predictors: lenvm; linear, source and survival (`model.heldout`, fitted on training completions);
prompt (the mean length of all samples of the prompt, the request's own among them: a little more
than any reader of the prompt could know); random (a number drawn per request). One order is judged
by

    share = (mean latency of fcfs - its own) / (mean latency of fcfs - that of perfect knowledge)

with perfect knowledge under the same rule of preemption: 1 is as good as knowing, 0 is as good as
not caring. Seeds draw requests and arrivals; all orders of a seed serve the same ones. The share is
NaN where fcfs and perfect knowledge do not differ, as on an idle server.

A completion that the token limit truncated is served to where it was truncated, as by a real
server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lenvm_rl.evals.result import Result
from lenvm_rl.evals.scheduling.queueing import Served, Server, poisson_arrivals, serve
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits
from lenvm_rl.model.heldout import NaivePredictors, outcome_errors, predicted_along
from lenvm_rl.model.policy import open_rollouts
from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.progress import progress_bar

LOADS = (0.8, 0.95, 1.1, 1.3)
HEADLINE = (
    ("share_predicted_lenvm", "way from FCFS to perfect knowledge", ".1%"),
    ("share_remaining_lenvm", "same, by remaining length", ".1%"),
    ("load", "at load", ".2f"),
    ("completions", "completions", ",d"),
)
SMALL = {"requests": 600, "seeds": 3}
"""Settings for a first look."""
Remaining = list[np.ndarray]
"""For each request [L]: predicted tokens still to come at s_0 .. s_{L-1}."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is simulated."""

    loads: Sequence[float] = LOADS
    """Offered loads, each positive (1.0 = server saturated)."""
    requests: int = 1000
    """Requests per simulation, drawn from the rows (with replacement when there are fewer)."""
    seeds: int = 5
    """Draws of requests and arrivals; the spread is over them."""
    preempt_until: float = 0.8
    """Preempt only before this fraction of the first predicted length (TRAIL's c); 0: never."""
    server: Server = Server()
    seed: int = 0
    """Seed of requests and arrivals."""

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


def run(
    lenvm: str | Path,
    rollouts: str | Path,
    out: str | Path,
    *,
    train: str | Path | None = None,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    any_policy: bool = False,
    progress: bool = True,
) -> Result:
    """Serve real lengths in simulated orders: first come, shortest predicted, perfect knowledge.

    Example: `lenvm eval scheduling --lenvm runs/demo/checkpoint/lenvm
    --rollouts runs/demo/rollouts/heldout --train runs/demo/rollouts/train --out runs/scheduling`

    Args:
        lenvm: Value model: directory, hub id, or `demo`.
        rollouts: Rollout file of prompts that it was not trained on: the requests.
        out: Directory to write scheduling.json, .jsonl, CSVs and scheduling.png to.
        train: Rollout file that it was trained on: fits the baselines; None leaves them out.
        settings: Loads, sizes, and the server.
        any_policy: Accept rollouts of another policy than the LenVM's.
        progress: Draw a bar on stderr.
    Raises:
        ValueError: a file of another tokenizer or policy, or rows beyond the LenVM's context.
    """
    from lenvm_rl.evals.scheduling.draw import draw

    model = LengthValueModel.from_pretrained(lenvm)
    reader = open_rollouts(model, rollouts, any_policy=any_policy)
    naive = None
    if train is not None:
        naive = NaivePredictors.of_rollouts(
            open_rollouts(model, train, any_policy=any_policy), gamma=model.config.require_gamma()
        )
    rows = list(reader.iter_rows())
    result = evaluate(rows, predict_remaining(model, rows, naive), settings, progress=progress)
    result.save(out)
    draw(result, out)
    return result


def predict_remaining(
    model: LengthValueModel, rows: Sequence[Rollout], naive: NaivePredictors | None = None
) -> dict[str, Remaining]:
    """Every real predictor along every row: lenvm, and linear, source and survival where fitted."""
    found = {(row.prompt_id, row.sample_id): z for row, z in iter_logits(model, rows)}
    along = [(row, found[row.prompt_id, row.sample_id]) for row in rows]
    return {
        name: [lengths.double().numpy() for lengths in parts]
        for name, parts in predicted_along(model, along, naive).items()
        if name != "mean"  # ranks nothing
    }


def evaluate(
    rows: Sequence[Rollout],
    predictions: Mapping[str, Remaining],
    settings: Settings,
    *,
    progress: bool = False,
) -> Result:
    """Serve the same requests in every order, at every load, for every seed.

    Args:
        rows: completions; their lengths are the requests'.
        predictions: for each predictor and row [L] remaining tokens at s_0 .. s_{L-1}.
        settings: loads, seeds, the server.
    """
    lengths = np.array([row.length for row in rows])
    known = {**predictions, **_oracles(rows, lengths)}
    runs = []
    total = len(settings.loads) * settings.seeds * len(_orders(known))
    with progress_bar("simulating", total, shown=progress) as advance:
        for load in settings.loads:
            for seed in range(settings.seeds):
                runs += _one_draw(lengths, known, settings, load, seed, advance)
    summary = _over_seeds(runs, settings.loads, list(_orders(known)))
    outcomes = torch.as_tensor(lengths, dtype=torch.float64)
    predictors = [
        {"predictor": name, **outcome_errors(torch.tensor([x[0] for x in values]), outcomes)}
        for name, values in known.items()
        if name not in ("true", "survival")
    ]
    tables = {"summary": summary, "runs": runs, "predictors": predictors}
    figures = _figures(rows, lengths, settings, summary, predictors)
    return Result("scheduling", figures, tables, HEADLINE)


def _oracles(rows: Sequence[Rollout], lengths: np.ndarray) -> dict[str, Remaining]:
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
    """Name of each order to (predictor, whether it may preempt). `fcfs` comes first."""
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
    settings: Settings,
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
    for order, (predictor, preempts) in _orders(known).items():
        hold: np.ndarray | float = 0.0
        if not predictor:
            keys = [np.full(k, t) for t, k in zip(arrival, drawn, strict=True)]
        elif predictor == "random":
            keys = [np.full(k, x) for x, k in zip(rng.random(n), drawn, strict=True)]
        else:
            keys = [known[predictor][i] for i in picked]
            if preempts:
                hold = np.floor(settings.preempt_until * np.array([key[0] for key in keys]))
            else:
                keys = [np.full(len(key), key[0]) for key in keys]
        served = serve(arrival, drawn, keys, settings.server, keeps_slot_after=hold)
        table.append({"load": load, "seed": seed, "order": order, **_measures(served, drawn)})
        advance(1)
    least = {row["order"]: row["latency_mean"] for row in table}
    for row in table:
        _, preempts = _orders(known)[row["order"]]
        gain = least["fcfs"] - least["remaining-true" if preempts else "predicted-true"]
        row["share"] = (least["fcfs"] - row["latency_mean"]) / gain if gain > 0 else math.nan
    return table


def _measures(served: Served, lengths: np.ndarray) -> dict[str, float]:
    """Measures of one simulation. Latency: arrival to last token; per token: latency / length."""
    latency = served.latency
    return {
        "latency_mean": float(latency.mean()),
        "latency_p50": float(np.quantile(latency, 0.5)),
        "latency_p99": float(np.quantile(latency, 0.99)),
        "latency_per_token": float((latency / lengths).mean()),
        "first_token_mean": float((served.first_token - served.arrival).mean()),
        "preemptions": served.preemptions,
        "busy": served.slot_steps / served.steps,
    }


def _over_seeds(
    runs: Sequence[Mapping[str, Any]], loads: Sequence[float], orders: Sequence[str]
) -> list[dict[str, Any]]:
    """Mean over seeds of every measure; `_sd` is the standard deviation over seeds."""
    table = []
    for load in loads:
        for order in orders:
            rows = [row for row in runs if row["load"] == load and row["order"] == order]
            line: dict[str, Any] = {"load": load, "order": order}
            for name in rows[0].keys() - {"load", "seed", "order"}:
                values = np.array([row[name] for row in rows], dtype=np.float64)
                line[name] = float(values.mean())
                line[f"{name}_sd"] = float(values.std(ddof=1)) if len(rows) > 1 else math.nan
            table.append({key: line[key] for key in ("load", "order", *sorted(line))})
    return table


def _figures(
    rows: Sequence[Rollout],
    lengths: np.ndarray,
    settings: Settings,
    summary: Sequence[Mapping[str, Any]],
    predictors: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Counts, settings, and what was found at the load nearest to .95."""
    near = min(settings.loads, key=lambda load: abs(load - 0.95))
    chosen = {line["order"]: line for line in summary if line["load"] == near}
    return {
        "completions": len(rows),
        "prompts": len({row.prompt_id for row in rows}),
        "length_mean": float(lengths.mean()),
        "length_p50": float(np.quantile(lengths, 0.5)),
        "length_p99": float(np.quantile(lengths, 0.99)),
        "share_truncated": sum(row.truncated for row in rows) / len(rows),
        "requests": settings.requests,
        "seeds": settings.seeds,
        "slots": settings.server.slots,
        "step_seconds": settings.server.step_seconds,
        "step_seconds_per_request": settings.server.step_seconds_per_request,
        "resume_steps": settings.server.resume_steps,
        "preempt_until": settings.preempt_until,
        "load": near,
        "share_predicted_lenvm": chosen["predicted-lenvm"]["share"],
        "share_predicted_lenvm_sd": chosen["predicted-lenvm"]["share_sd"],
        "share_remaining_lenvm": chosen["remaining-lenvm"]["share"],
        "share_remaining_lenvm_sd": chosen["remaining-lenvm"]["share_sd"],
        "latency_mean": {order: line["latency_mean"] for order, line in chosen.items()},
        "latency_p99": {order: line["latency_p99"] for order, line in chosen.items()},
        "share": {
            f"{load:g}": {line["order"]: line["share"] for line in summary if line["load"] == load}
            for load in settings.loads
        },
        "predictors": {line["predictor"]: dict(line) for line in predictors},
    }
