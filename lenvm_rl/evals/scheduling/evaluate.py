"""Scheduling: mean and tail latency of a simulated server, by order of service.

Completions of a rollout file become requests with their real lengths, arriving at random on a
simulated server (`queueing`). The same requests are served in several orders:

    fcfs               first come, first served
    predicted-P        shortest predicted response first, by predictor P at s_0; none is preempted
    remaining-P        shortest predicted remainder first, by P at every state; a running request
                       may be preempted until it has written `preempt_until` of its first prediction
    srpt               shortest remaining processing time by the lengths themselves; any request may
                       be preempted at any time
    feedback           no prediction: levels of twice as many tokens each, those that have written
                       least go first (multi-level feedback, a tail-aware order without a model)
    aged-P             remaining-P of which any may be preempted, where waiting counts for `aging`
    patient-P          the same with a bound on latency, `patience` times the p99 of fcfs in other
                       draws at the same load: who would miss it goes first (`queueing.Patience`)

Predictors: lenvm; linear, source and survival (`model.heldout`, fitted on training completions);
quantile (the .9 quantile of what training completions that are still going have left: the same for
every prompt); prompt (the mean length of all samples of the prompt, the request's own among them: a
little more than any reader of the prompt could know); random (a number drawn per request); true
(the lengths themselves: perfect knowledge). A LenVM that predicts a distribution is `lenvm` by its
mean, and gives further keys of it (`core.scheduling`):

    lenvm-p90          quantile .9
    lenvm-tie          tail-inflated expectation
    lenvm-gittins      Gittins index, of what remains at every token

One order is judged by

    share = (mean latency of fcfs - its own) / (mean latency of fcfs - that of perfect knowledge)

with perfect knowledge under the same rule of preemption: predicted-true, remaining-true, or srpt
where any may be preempted. 1 is as good as knowing, 0 is as good as not caring; `share_of_sjf` is
that of predicted-true for every order, `tail` p99 latency as a multiple of that of fcfs. Seeds draw
requests and arrivals; all orders of a seed serve the same ones. A share is NaN where fcfs and
perfect knowledge do not differ, as on an idle server.

A completion that the token limit truncated is served to where it was truncated, as by a real
server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.core import DISTRIBUTION, gittins, tail_inflated
from lenvm_rl.evals.result import Result
from lenvm_rl.evals.scheduling.orders import ALONG_ONLY, Order, Remaining, Traffic, orders_of
from lenvm_rl.evals.scheduling.queueing import Served, Server, arrivals
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits, iter_outputs
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
_CALIBRATION = 1_000
"""Seeds from here on draw the traffic whose tail under fcfs sets the bound on latency."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is simulated."""

    loads: Sequence[float] = LOADS
    """Offered loads, each positive (1.0 = server saturated)."""
    burstiness: Sequence[float] = (1.0, 0.25)
    """Arrivals: shapes of gamma distributed gaps; 1 is Poisson, below 1 requests come in bursts."""
    requests: int = 1000
    """Requests per simulation, drawn from the rows (with replacement when there are fewer)."""
    seeds: int = 5
    """Draws of requests and arrivals; the spread is over them."""
    preempt_until: float = 0.8
    """Preempt only before this fraction of the first predicted length (TRAIL's c); 0: never."""
    aging: float = 0.1
    """In the aged order: tokens that a unit of time of waiting is worth."""
    patience: float = 0.9
    """In patient orders: latency to keep, as a share of the p99 of first come, first served in
    other draws at the same load."""
    server: Server = Server()
    seed: int = 0
    """Seed of requests and arrivals."""

    def __post_init__(self) -> None:
        if self.requests < 2 or self.seeds < 1 or not self.loads or not self.burstiness:
            raise ValueError(
                f"{self.requests} requests x {self.seeds} seeds x {len(self.loads)} loads x "
                f"{len(self.burstiness)} kinds of arrivals simulate nothing: give at least 2 "
                "requests, and 1 of the others."
            )
        for name in ("preempt_until", "aging"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        for name in ("loads", "burstiness", "patience"):
            value = getattr(self, name)
            for number in value if name != "patience" else (value,):
                if not 0 < number < math.inf:
                    raise ValueError(f"{name} must be positive, got {number}.")


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
    """Every real predictor along every row: lenvm with its keys, and the naive ones where fitted.

    A LenVM that predicts one number a state has no keys but it.
    """
    spread = model.config.target == DISTRIBUTION
    read = iter_outputs if spread else iter_logits
    found = {(row.prompt_id, row.sample_id): out for row, out in read(model, rows)}
    outputs = [found[row.prompt_id, row.sample_id] for row in rows]
    z = [model.config.read(out) for out in outputs] if spread else outputs
    guesses = predicted_along(model, list(zip(rows, z, strict=True)), naive)
    guesses.pop("mean", None)  # ranks nothing
    if spread:
        keys = [_distribution_keys(model, out) for out in outputs]
        guesses |= {name: [part[name] for part in keys] for name in keys[0]}
    if naive is not None:
        guesses["quantile"] = [naive.residual_quantile(row.length) for row in rows]
    return {name: [part.double().numpy() for part in parts] for name, parts in guesses.items()}


def _distribution_keys(model: LengthValueModel, outputs: Tensor) -> dict[str, Tensor]:
    """[L] each, of the outputs [L, K] along a row."""
    distribution = model.config.require_bins().of(outputs)
    return {
        "lenvm": distribution.mean(),
        "lenvm-p90": distribution.quantile(0.9),
        "lenvm-tie": tail_inflated(distribution),
        "lenvm-gittins": gittins(distribution),
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
    prompts = np.array([len(row.prompt_ids) for row in rows])
    known = {**predictions, **_oracles(rows, lengths)}
    orders = orders_of(known)
    cells = [(shape, load) for shape in settings.burstiness for load in settings.loads]
    runs = []
    total = len(cells) * (settings.seeds * len(orders) + settings.seeds)
    with progress_bar("simulating", total, shown=progress) as advance:
        for shape, load in cells:
            draw = partial(_drawn, lengths, prompts, known, settings, shape, load)
            tail = _tail_of_fcfs(draw, settings, advance)
            for seed in range(settings.seeds):
                cell = {"burstiness": shape, "load": load, "seed": seed}
                for line in _serve_all(draw(seed), orders, settings, tail, advance):
                    runs.append(cell | line)
    summary = _over_seeds(runs)
    outcomes = torch.as_tensor(lengths, dtype=torch.float64)
    predictors = [
        {"predictor": name, **outcome_errors(torch.tensor([x[0] for x in values]), outcomes)}
        for name, values in known.items()
        if name not in ("true", *ALONG_ONLY)
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


def _drawn(
    lengths: np.ndarray,
    prompts: np.ndarray,
    known: Mapping[str, Remaining],
    settings: Settings,
    burstiness: float,
    load: float,
    seed: int,
) -> Traffic:
    rng = np.random.default_rng([settings.seed, 2, seed])  # the same requests at every load
    n = settings.requests
    picked = rng.choice(len(lengths), size=n, replace=n > len(lengths))
    capacity = settings.server.capacity(lengths, prompts)
    arrival = arrivals(
        lengths[picked], load=load, capacity=capacity, rng=rng, burstiness=burstiness
    )
    return Traffic.drawn(picked, arrival, lengths, prompts, known, rng)


def _tail_of_fcfs(
    draw: Callable[[int], Traffic], settings: Settings, advance: Callable[[int], None]
) -> float:
    """Mean p99 latency of first come, first served over draws that are not evaluated."""
    tails = []
    for seed in range(settings.seeds):
        served = _served(draw(_CALIBRATION + seed), Order("fcfs", "", "never"), settings, 0.0)
        tails.append(np.quantile(served.latency, 0.99))
        advance(1)
    return float(np.mean(tails))


def _serve_all(
    traffic: Traffic,
    orders: Sequence[Order],
    settings: Settings,
    tail: float,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    table = {}
    for order in orders:
        served = _served(traffic, order, settings, tail)
        table[order.name] = {"order": order.name, **_measures(served, traffic)}
        advance(1)
    fcfs = table["fcfs"]
    for order in orders:
        line = table[order.name]
        gain = fcfs["latency_mean"] - table[order.perfect]["latency_mean"]
        won = fcfs["latency_mean"] - line["latency_mean"]
        line["share"] = won / gain if gain > 0 else math.nan
        sjf = fcfs["latency_mean"] - table["predicted-true"]["latency_mean"]
        line["share_of_sjf"] = won / sjf if sjf > 0 else math.nan
        line["tail"] = line["latency_p99"] / fcfs["latency_p99"]
    return list(table.values())


def _served(traffic: Traffic, order: Order, settings: Settings, tail: float) -> Served:
    return traffic.served(
        order,
        settings.server,
        preempt_until=settings.preempt_until,
        aging=settings.aging,
        bound=settings.patience * tail,
    )


def _measures(served: Served, traffic: Traffic) -> dict[str, float]:
    """Measures of one simulation. Latency: arrival to last token; per token: latency / length."""
    latency, first = served.latency, served.first_token - served.arrival
    return {
        "latency_mean": float(latency.mean()),
        "latency_p50": float(np.quantile(latency, 0.5)),
        "latency_p99": float(np.quantile(latency, 0.99)),
        "latency_max": float(latency.max()),
        "latency_per_token": float((latency / traffic.lengths).mean()),
        "first_token_mean": float(first.mean()),
        "first_token_p99": float(np.quantile(first, 0.99)),
        "throughput": float(traffic.lengths.sum() / served.makespan),
        "preemptions": served.preemptions,
        "read_again": float(served.read / max(1, traffic.prompts.sum()) - 1),
        "busy": served.slot_steps / served.steps,
    }


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds of every measure; `_sd` is the standard deviation over seeds."""
    cell = ("burstiness", "load", "order")
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in runs:
        groups.setdefault(tuple(row[name] for name in cell), []).append(row)
    table = []
    for place, rows in groups.items():
        line: dict[str, Any] = {}
        for name in rows[0].keys() - {"seed", *cell}:
            values = np.array([row[name] for row in rows], dtype=np.float64)
            line[name] = float(values.mean())
            line[f"{name}_sd"] = float(values.std(ddof=1)) if len(rows) > 1 else math.nan
        table.append(dict(zip(cell, place, strict=True)) | {key: line[key] for key in sorted(line)})
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
    smooth = max(settings.burstiness, key=lambda shape: -abs(shape - 1))  # Poisson, or nearest
    steady = [line for line in summary if line["burstiness"] == smooth]
    chosen = {line["order"]: line for line in steady if line["load"] == near}
    names = {line["order"] for line in summary}
    best = max(names & {"patient-lenvm", "patient-lenvm-gittins"}, key=len)
    patient = [line for line in summary if line["order"] == best]
    server = settings.server
    return {
        "completions": len(rows),
        "prompts": len({row.prompt_id for row in rows}),
        "length_mean": float(lengths.mean()),
        "length_p50": float(np.quantile(lengths, 0.5)),
        "length_p99": float(np.quantile(lengths, 0.99)),
        "share_truncated": sum(row.truncated for row in rows) / len(rows),
        "requests": settings.requests,
        "seeds": settings.seeds,
        **{field.name: getattr(server, field.name) for field in fields(server)},
        "preempt_until": settings.preempt_until,
        "aging": settings.aging,
        "patience": settings.patience,
        "load": near,
        "burstiness": smooth,
        "share_predicted_lenvm": chosen["predicted-lenvm"]["share"],
        "share_predicted_lenvm_sd": chosen["predicted-lenvm"]["share_sd"],
        "share_remaining_lenvm": chosen["remaining-lenvm"]["share"],
        "share_remaining_lenvm_sd": chosen["remaining-lenvm"]["share_sd"],
        "share_patient_lenvm": chosen[best]["share"],
        "tail_patient_lenvm": chosen[best]["tail"],
        "patient": {
            f"{line['burstiness']:g}": {
                f"{at['load']:g}": {
                    name: at[name] for name in ("share", "share_of_sjf", "tail", "preemptions")
                }
                for at in patient
                if at["burstiness"] == line["burstiness"]
            }
            for line in patient
        },
        "latency_mean": {order: line["latency_mean"] for order, line in chosen.items()},
        "latency_p99": {order: line["latency_p99"] for order, line in chosen.items()},
        "share": {
            f"{load:g}": {line["order"]: line["share"] for line in steady if line["load"] == load}
            for load in settings.loads
        },
        "predictors": {line["predictor"]: dict(line) for line in predictors},
    }
