"""Prediction: how good a LenVM's lengths are, on held-out completions and on sampled truth.

One table for each question; every number is defined where it is computed:

    prompts      is the length known before the first token? (prompt boundary, N samples a prompt)
    domains      the same by data source, in the layout of the paper's table 3
    outcomes     how far off from what single requests did? (as TRAIL, PLP and vllm-ltr report)
    states       is V right inside responses? (against Monte Carlo continuations, where given)
    positions    how far off are remaining lengths at 0/25/50/75/90 % of each response?
    position_domains   the same by data source
    calibration  is the mean outcome at a prediction the prediction itself? (all tokens)
    position_calibration   and at 0/25/50/75 % of each response?
    coverage, reliability, pit   of the target `distribution`: how often is the length inside its
                 intervals? (all states, by source, by tokens written, by position: `intervals`)

A completion truncated by the token limit counts with the length seen, which is a lower bound; the
share of such rows is reported, and above 1 % a warning says so.

Bias by position is measured against Monte Carlo values; `inside` says why outcomes mislead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from lenvm_rl.core import predicted_length
from lenvm_rl.evals.prediction.errors import (
    Table,
    domain_table,
    prompt_metrics,
    prompt_table,
)
from lenvm_rl.evals.prediction.inside import (
    Along,
    Readings,
    outcome_table,
    position_calibration,
    position_domains,
    position_errors,
    position_table,
    token_metrics,
)
from lenvm_rl.evals.prediction.intervals import interval_metrics
from lenvm_rl.evals.prediction.states import sample_states, state_metrics, state_table
from lenvm_rl.evals.result import Result
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits, model_space
from lenvm_rl.model.heldout import NaivePredictors
from lenvm_rl.model.policy import open_rollouts
from lenvm_rl.model.probe import Probe, fit_probe
from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.progress import progress_bar
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler

_TRUNCATED_WARNING = 0.01


HEADLINE = (
    ("mre_s0", "mean relative error at the prompt", ".3f"),
    ("mre_noise_floor", "noise floor", ".3f"),
    ("kendall_tau_s0", "Kendall tau", ".3f"),
    ("r2_monte_carlo", "R2 inside responses", ".3f"),
    ("coverage_90", "coverage of 90 % intervals", ".3f"),
)
SMALL = {"states": 100, "continuations": 24}
"""Settings for a first look."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes, and the seed."""

    states: int = 160
    """States inside responses, at least 2."""
    continuations: int = 32
    """Continuations sampled from each state, at least 2."""
    inside: int | None = None
    """Completions of a prompt that are read to their ends, for errors inside responses (default:
    all; measured lengths are always of all)."""
    probe_states: int = 16_384
    """States of training completions that the probe is fitted on, at most."""
    seed: int = 0
    """Seed of the states chosen, the continuations, the probe, the halves behind the noise floor
    and the intervals."""

    def __post_init__(self) -> None:
        for name, least in (
            ("states", 2),
            ("continuations", 2),
            ("inside", 1),
            ("probe_states", 2),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")


def run(
    lenvm: str | Path,
    rollouts: str | Path,
    out: str | Path,
    *,
    train: str | Path | None = None,
    policy: str | Path | None = None,
    probe: str | Path | None = None,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    batch_size: int = 128,
    any_policy: bool = False,
    progress: bool = True,
) -> Result:
    """Compare predictions with measured lengths: by domain, by position, beside baselines.

    Example: `lenvm eval prediction --lenvm runs/demo/checkpoint/lenvm --policy demo
    --rollouts runs/demo/rollouts/heldout --train runs/demo/rollouts/train --out runs/prediction`

    Args:
        lenvm: Value model: directory, hub id, or `demo`.
        rollouts: Rollout file of prompts that it was not trained on, several samples per prompt.
        out: Directory to write to; continuations go to OUT/states, so that a killed run continues.
        train: Rollout file that it was trained on: fits the baselines; None leaves them out.
        policy: The model that wrote the rollouts; None leaves the Monte Carlo part out.
        probe: The model that wrote them, again: a probe on its last hidden states is fitted on
            --train and stands beside the baselines; None leaves it out.
        settings: Sizes and seed.
        batch_size: Rows sampled together.
        any_policy: Accept rollouts of another policy than the LenVM's.
        progress: Draw a bar on stderr.
    Raises:
        ValueError: as `evaluate`; a probe without completions to fit it on.
    """
    from lenvm_rl.evals.prediction.draw import draw

    model = LengthValueModel.from_pretrained(lenvm)
    fitted = None
    if probe is not None:
        fitted = _fitted(
            model, probe, rollouts, train, settings, any_policy=any_policy, progress=progress
        )
    states = None
    if policy is not None:
        open_rollouts(model, rollouts, any_policy=any_policy)  # before anything is sampled
        states = Path(out) / "states"
        sample_states(
            ContinuousSampler.from_pretrained(str(policy), max_batch=batch_size),
            rollouts,
            states,
            policy_name=str(policy),
            count=settings.states,
            n=settings.continuations,
            seed=settings.seed,
            progress=progress,
        )
    result = evaluate(
        model,
        rollouts,
        train=train,
        states=states,
        probe=fitted,
        inside=settings.inside,
        seed=settings.seed,
        any_policy=any_policy,
        progress=progress,
    )
    result.save(out)
    draw(result, out)
    return result


def _fitted(
    model: LengthValueModel,
    policy: str | Path,
    rollouts: str | Path,
    train: str | Path | None,
    settings: Settings,
    *,
    any_policy: bool,
    progress: bool,
) -> Probe:
    """A probe on the policy's states, which has seen no prompt of `rollouts`."""
    if train is None:
        raise ValueError(
            f"--probe {policy} is fitted on the completions that the LenVM was trained on: give "
            "them (--train)."
        )
    open_rollouts(model, train, any_policy=any_policy)
    heldout = open_rollouts(model, rollouts, any_policy=any_policy)
    return fit_probe(
        policy,
        train,
        gamma=model.config.require_gamma(),
        states=settings.probe_states,
        exclude={tuple(row["prompt_ids"]) for row in heldout.iter_rows(["prompt_ids"])},
        seed=settings.seed,
        progress=progress,
    )


def evaluate(
    model: LengthValueModel,
    rollouts: str | Path,
    *,
    train: str | Path | None = None,
    states: str | Path | None = None,
    probe: Probe | None = None,
    inside: int | None = None,
    token_budget: int = 16_384,
    seed: int = 0,
    any_policy: bool = False,
    progress: bool = False,
) -> Result:
    """Evaluate from rollout files alone; no policy is needed.

    Memory grows with the held-out set (about 100 bytes per token), not with the training set.

    Args:
        model: a LenVM with its gamma.
        rollouts: rollout file of unseen prompts; samples of a prompt share a prompt_id.
        train: rollout file for the naive predictors; None leaves them out.
        states: rollout file of continuations from `sample_states`; None leaves this part out.
        probe: of `fit_probe`; None leaves it out.
        inside: completions of a prompt that the models read, the first ones; None: all.
        token_budget: padded tokens per forward pass.
        seed: of the random halves behind the noise floor, and of the intervals.
        any_policy: accept rollouts of another policy than the model's.
        progress: draw bars on stderr.
    Raises:
        ValueError: files of another tokenizer or policy than the model's, or rows longer than its
            context.
    """
    gamma = model.config.require_gamma()
    rows = list(open_rollouts(model, rollouts, any_policy=any_policy).iter_rows())
    rows.sort(key=lambda row: (row.prompt_id, row.sample_id))
    naive = None
    if train is not None:
        reader = open_rollouts(model, train, any_policy=any_policy)
        naive = NaivePredictors.of_rollouts(reader, gamma=gamma)
    models = {"lenvm": model} | ({} if probe is None else {"probe": probe.model})
    readings: Readings = {
        name: (one, _read(one, _first_completions(rows, inside), token_budget, name, progress))
        for name, one in models.items()
    }
    first = {name: _first_lengths(*reading) for name, reading in readings.items()}
    tables = {"prompts": prompt_table(first, rows, naive, gamma=gamma)}
    figures = _counts(rows, gamma) | ({} if probe is None else probe.figures)
    figures |= prompt_metrics(tables["prompts"], rows, gamma=gamma, seed=seed)
    tables["domains"] = domain_table(tables["prompts"], rows, gamma=gamma, seed=seed)
    ended: Readings = {
        name: (one, [item for item in along if not item[0].truncated])
        for name, (one, along) in readings.items()
    }
    if ended["lenvm"][1]:
        found, more = _inside(ended, tables["prompts"], naive, seed=seed)
        figures, tables = figures | found, tables | more
    reader = None if states is None else open_rollouts(model, states, any_policy=any_policy)
    if reader is not None:
        tables["states"] = state_table(model, reader, token_budget=token_budget)
        measured, tables["state_positions"] = state_metrics(tables["states"])
        figures |= measured
    if model.config.length_bins is not None:
        found, more = interval_metrics(
            model,
            _first_completions(rows, inside),
            None if reader is None else reader.iter_rows(),
            token_budget=token_budget,
        )
        figures, tables = figures | found, tables | more
    return Result("prediction", figures, tables, HEADLINE)


def _inside(
    readings: Readings,
    prompts: Table,
    naive: NaivePredictors | None,
    *,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Table]]:
    """Figures and tables of finished responses."""
    model, along = readings["lenvm"]
    errors = position_errors(readings, naive)
    tables = {
        "outcomes": outcome_table(readings, prompts, naive),
        "positions": position_table(errors, along, seed=seed),
        "position_domains": position_domains(errors, along, seed=seed),
        "position_calibration": position_calibration(model, along),
    }
    figures, tables["calibration"] = token_metrics(model, along)
    figures |= {
        f"relative_error_{r['predictor']}_{round(100 * r['position']):02d}": r["relative_error"]
        for r in tables["positions"]
    }
    figures |= {
        f"{name}_outcomes_{r['at']}_{r['predictor']}": r[name]
        for r in tables["outcomes"]
        for name in ("mae", "kendall_tau")
    }
    return figures, tables


def _first_completions(rows: Sequence[Rollout], most: int | None) -> list[Rollout]:
    """At most `most` completions of every prompt, those with the lowest sample_id.

    Args:
        rows: sorted by (prompt_id, sample_id).
    """
    groups = groupby(rows, key=lambda row: row.prompt_id)
    return [row for _, group in groups for row in islice(group, most)]


def _read(
    model: LengthValueModel, rows: list[Rollout], token_budget: int, name: str, progress: bool
) -> list[Along]:
    """The model's logits along completions, in their own order."""
    found = {}
    with progress_bar(f"reading with {name}", len(rows), shown=progress) as advance:
        for row, z in iter_logits(model, rows, token_budget=token_budget):
            found[row.prompt_id, row.sample_id] = z
            advance(1)
    return [(row, found[row.prompt_id, row.sample_id]) for row in rows]


def _counts(rows: Sequence[Rollout], gamma: float) -> dict[str, Any]:
    truncated = sum(row.truncated for row in rows) / len(rows)
    if truncated > _TRUNCATED_WARNING:
        warnings.warn(
            f"{truncated:.1%} of the held-out completions were truncated by the token limit: true "
            "lengths are longer than measured. Sample them with more tokens.",
            stacklevel=3,
        )
    return {
        "gamma": gamma,
        "completions": len(rows),
        "tokens": sum(row.length for row in rows),
        "share_truncated": truncated,
    }


def _first_lengths(model: LengthValueModel, along: Iterable[Along]) -> dict[str, float]:
    """Predicted length at s_0 of every prompt (a function of the prompt alone)."""
    return {row.prompt_id: predicted_length(z[:1], **model_space(model)).item() for row, z in along}
