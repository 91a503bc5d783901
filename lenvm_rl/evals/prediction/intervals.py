"""Is a LenVM of the target `distribution` as certain as it says: intervals, PIT, proper scores?

An interval of 90 % has to hold 90 % of what happens, over all states and over any group of them
that could be told apart beforehand: by source, and by the tokens written so far (`written`). Two
more groups are by relative position:

    position       states at 0/25/50/75/90 % of responses, against how these went on. The position
                   is known only afterwards (see `inside`): even a perfect model leaves the nominal
                   share there, except at 0 %.
    continuations  states in quarters of responses, against fresh continuations sampled from them
                   (`states`): how far a response had come is no news to these.

Lengths are whole numbers, so that shares are means over a coin at an interval's ends
(`core.interval_coverage`), and an outcome is spread evenly over its step of the PIT. Truncated
responses are left out, as their lengths are not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lenvm_rl.core import POSITIONS, LengthDistribution, at_positions, interval_coverage
from lenvm_rl.evals.prediction.errors import Table
from lenvm_rl.evals.prediction.states import QUARTERS, StateId
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_outputs
from lenvm_rl.rollouts import Rollout

SHARES = (0.5, 0.9)
"""Of the intervals in figures and in table `coverage`."""
LEVELS = (0.5, 0.9)
"""Of the quantiles whose pinball loss is measured."""
RELIABILITY = tuple(i / 20 for i in range(1, 20))
"""Shares of the intervals in table `reliability`."""
WRITTEN = (0, 1, 16, 64, 256)
"""Tokens written so far at which groups of states begin."""
_BINS = 20


class Outcomes:
    """What happened, in the terms of what was predicted: [n] each, states of one kind together.

    Args:
        parts: names to tensors of one length, joined in their order.
    """

    def __init__(self, parts: Iterable[Mapping[str, Tensor]]):
        joined = list(parts)
        self._columns = {name: torch.cat([p[name] for p in joined]) for name in joined[0]}

    def __getitem__(self, name: str) -> Tensor:
        return self._columns[name]

    def where(self, which: Tensor) -> Outcomes:
        """Those of a mask or of indices."""
        return Outcomes([{name: x[which] for name, x in self._columns.items()}])

    def row(self, group: str, name: str) -> dict[str, Any]:
        """Shares covered, and mean scores in tokens."""
        low, high = self["low"], self["high"]
        covered = {
            f"coverage_{round(100 * s)}": interval_coverage(low, high, s).mean().item()
            for s in SHARES
        }
        scores = ("crps", *(f"pinball_{round(100 * level)}" for level in LEVELS), "nll")
        means = {score: self[score].double().mean().item() for score in scores}
        return {"group": group, "name": name, "states": len(low), **covered, **means}


def interval_metrics(
    model: LengthValueModel,
    rows: Iterable[Rollout],
    continuations: Iterable[Rollout] | None,
    *,
    token_budget: int,
) -> tuple[dict[str, float], dict[str, Table]]:
    """Figures and the tables `coverage`, `reliability` and `pit` of a distribution.

    Args:
        rows: completions, of which those that ended count.
        continuations: of `sample_states`; None leaves this group out.
    Returns:
        Figures coverage_50 and coverage_90 (shares of all states), crps and pinball_50, pinball_90
        (tokens), nll (nats), all means over states; coverage_error, the largest distance from
        nominal in `reliability` of all states. Empty without a completion that ended.
    """
    ended = [row for row in rows if not row.truncated]
    if not ended:
        return {}, {}
    found = list(_read(model, ended, token_budget))
    everything = Outcomes(part for _, part in found)
    table = [everything.row("all", "all states"), *_by_source(found), *_by_written(everything)]
    at = {p: Outcomes(_at(part, p) for _, part in found) for p in POSITIONS}
    table += [at[p].row("position", f"{100 * p:.0f} %") for p in POSITIONS]
    kinds = {"all states": everything, "at the prompt": at[0.0]}
    if continuations is not None:
        quarters = _by_quarter(model, continuations, token_budget)
        table += [part.row("continuations", name) for name, part in quarters.items()]
    reliability, pit = [], []
    for name, part in kinds.items():
        reliability += _reliability(name, part)
        pit += _pit(name, part)
    figures = {name: x for name, x in table[0].items() if isinstance(x, float)}
    misses = [abs(r["covered"] - r["share"]) for r in reliability if r["name"] == "all states"]
    figures["coverage_error"] = max(misses)
    return figures, {"coverage": table, "reliability": reliability, "pit": pit}


def _read(
    model: LengthValueModel, rows: Iterable[Rollout], token_budget: int
) -> Iterator[tuple[Rollout, dict[str, Tensor]]]:
    """Every completion with the outcomes at its states s_0 .. s_{L-1}."""
    bins = model.config.require_bins()
    for row, outputs in iter_outputs(model, rows, token_budget=token_budget):
        left = torch.arange(row.length, 0, -1, dtype=torch.float32)
        yield row, {**_scored(bins.of(outputs), left), "written": torch.arange(row.length)}


def _scored(said: LengthDistribution, left: Tensor) -> dict[str, Tensor]:
    """What was said of the lengths `left` [n], which are what happened."""
    low, high = said.pit(left)
    return {
        "low": low.double(),
        "high": high.double(),
        "crps": said.crps(left),
        **{f"pinball_{round(100 * level)}": said.pinball(left, level) for level in LEVELS},
        "nll": said.nll(left),
    }


def _at(part: Mapping[str, Tensor], position: float) -> dict[str, Tensor]:
    """The state at a relative position of one response."""
    length = len(part["low"])
    places = torch.arange(length, dtype=torch.float64)[None]
    place = at_positions(places, torch.ones(1, length), positions=(position,)).long()[0]
    return {name: x[place] for name, x in part.items()}


def _by_source(found: list[tuple[Rollout, dict[str, Tensor]]]) -> Table:
    sources = sorted({row.data_source for row, _ in found})
    if len(sources) < 2:
        return []
    return [
        Outcomes(part for row, part in found if row.data_source == source).row("source", source)
        for source in sources
    ]


def _by_written(outcomes: Outcomes) -> Table:
    table = []
    for first, end in zip(WRITTEN, (*WRITTEN[1:], math.inf), strict=True):
        inside = (outcomes["written"] >= first) & (outcomes["written"] < end)
        name = f"{first}" if end - first == 1 else f"from {first}"
        if inside.any():
            table.append(outcomes.where(inside).row("written", name))
    return table


def _by_quarter(
    model: LengthValueModel, continuations: Iterable[Rollout], token_budget: int
) -> dict[str, Outcomes]:
    """Continuations by the quarter of the response that their state was drawn from."""
    lengths: dict[str, list[int]] = {}
    states: dict[str, Rollout] = {}
    for row in continuations:
        if not row.truncated:
            lengths.setdefault(row.prompt_id, []).append(row.length)
            states.setdefault(row.prompt_id, replace(row, response_ids=row.response_ids[:1]))
    bins, parts = model.config.require_bins(), {}
    for row, outputs in iter_outputs(model, states.values(), token_budget=token_budget):
        left = torch.tensor(lengths[row.prompt_id], dtype=torch.float32)
        position = StateId.parse(row.prompt_id).position
        low, high = next((a, b) for a, b in QUARTERS if a <= position < b)
        found = _scored(bins.of(outputs[:1].expand(len(left), -1)), left)
        parts.setdefault(f"{100 * low:.0f}-{100 * high:.0f} %", []).append(found)
    return {name: Outcomes(parts[name]) for name in sorted(parts, key=_start)}


def _start(name: str) -> int:
    return int(name.partition("-")[0])


def _reliability(name: str, part: Outcomes) -> Table:
    """Share of outcomes inside central intervals of every nominal share."""
    low, high = part["low"], part["high"]
    return [
        {"name": name, "share": s, "covered": interval_coverage(low, high, s).mean().item()}
        for s in RELIABILITY
    ]


def _pit(name: str, part: Outcomes) -> Table:
    """Share of outcomes in each of 20 equal parts of [0, 1]; even where calibrated."""
    low, high = part["low"], part["high"]
    width = (high - low).clamp(min=1e-12)
    edges = torch.linspace(0.0, 1.0, _BINS + 1, dtype=torch.float64)
    below = ((edges - low[:, None]) / width[:, None]).clamp(0.0, 1.0).mean(0)
    below[0], below[-1] = 0.0, 1.0
    shares = below.diff().tolist()
    return [
        {"name": name, "from": edges[i].item(), "to": edges[i + 1].item(), "share": x}
        for i, x in enumerate(shares)
    ]
