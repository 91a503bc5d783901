"""Prediction: how good a LenVM's lengths are, on held-out completions and on sampled truth.

One table for each question; every number is defined where it is computed:

    prompts      is the length known before the first token? (prompt boundary, N samples a prompt)
    domains      the same by data source, in the layout of the paper's table 3
    outcomes     how far off from what single requests did? (as TRAIL, PLP and vllm-ltr report)
    states       is V right inside responses? (against Monte Carlo continuations, where given)
    positions    how far off are remaining lengths at 0/25/50/75/90 % of each response?
    calibration  is the mean outcome at a prediction the prediction itself? (all tokens)
    position_calibration   and at 0/25/50/75 % of each response?

A completion truncated by the token limit counts with the length seen, which is a lower bound; the
share of such rows is reported, and above 1 % a warning says so.

Bias by position is measured against Monte Carlo values; `errors` says why outcomes mislead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenvm_rl.core import predicted_length
from lenvm_rl.evals.prediction.errors import (
    Along,
    domain_table,
    outcome_table,
    position_calibration,
    position_table,
    prompt_metrics,
    prompt_table,
    token_metrics,
)
from lenvm_rl.evals.prediction.states import sample_states, state_metrics, state_table
from lenvm_rl.evals.result import Result
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits, model_space
from lenvm_rl.model.heldout import NaivePredictors
from lenvm_rl.model.policy import open_rollouts
from lenvm_rl.rollouts import Rollout
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler

_TRUNCATED_WARNING = 0.01


HEADLINE = (
    ("mre_s0", "mean relative error at the prompt", ".3f"),
    ("mre_noise_floor", "noise floor", ".3f"),
    ("kendall_tau_s0", "Kendall tau", ".3f"),
    ("r2_monte_carlo", "R2 inside responses", ".3f"),
)
SMALL = {"states": 100, "continuations": 24}
"""Settings for a first look."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the Monte Carlo part, and the seed."""

    states: int = 160
    """States inside responses, at least 2."""
    continuations: int = 32
    """Continuations sampled from each state, at least 2."""
    seed: int = 0
    """Seed of the states chosen, the continuations, and the halves behind the noise floor."""

    def __post_init__(self) -> None:
        for name in ("states", "continuations"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}.")


def run(
    lenvm: str | Path,
    rollouts: str | Path,
    out: str | Path,
    *,
    train: str | Path | None = None,
    policy: str | Path | None = None,
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
        settings: Sizes and seed.
        batch_size: Rows sampled together.
        any_policy: Accept rollouts of another policy than the LenVM's.
        progress: Draw a bar on stderr.
    Raises:
        ValueError: as `evaluate`.
    """
    from lenvm_rl.evals.prediction.draw import draw

    model = LengthValueModel.from_pretrained(lenvm)
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
        model, rollouts, train=train, states=states, seed=settings.seed, any_policy=any_policy
    )
    result.save(out)
    draw(result, out)
    return result


def evaluate(
    model: LengthValueModel,
    rollouts: str | Path,
    *,
    train: str | Path | None = None,
    states: str | Path | None = None,
    token_budget: int = 16_384,
    seed: int = 0,
    any_policy: bool = False,
) -> Result:
    """Evaluate from rollout files alone; no policy is needed.

    Memory grows with the held-out set (about 100 bytes per token), not with the training set.

    Args:
        model: a LenVM with its gamma.
        rollouts: rollout file of unseen prompts; samples of a prompt share a prompt_id.
        train: rollout file for the naive predictors; None leaves them out.
        states: rollout file of continuations from `sample_states`; None leaves this part out.
        token_budget: padded tokens per forward pass.
        seed: of the random halves behind the noise floor.
        any_policy: accept rollouts of another policy than the model's.
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
    along: list[Along] = list(iter_logits(model, rows, token_budget=token_budget))
    along.sort(key=lambda item: (item[0].prompt_id, item[0].sample_id))

    tables = {"prompts": prompt_table(_first_lengths(model, along), rows, naive, gamma=gamma)}
    figures = _counts(rows, gamma)
    figures |= prompt_metrics(tables["prompts"], rows, gamma=gamma, seed=seed)
    tables["domains"] = domain_table(tables["prompts"], rows, gamma=gamma, seed=seed)
    ended = [item for item in along if not item[0].truncated]
    if ended:
        tables["outcomes"] = outcome_table(model, tables["prompts"], ended, naive)
        tables["positions"] = position_table(model, ended, naive)
        tables["position_calibration"] = position_calibration(model, ended)
        tokens, tables["calibration"] = token_metrics(model, ended)
        figures |= tokens
        figures |= {
            f"relative_error_{r['predictor']}_{round(100 * r['position']):02d}": r["relative_error"]
            for r in tables["positions"]
        }
        figures |= {
            f"{name}_outcomes_{r['at']}_{r['predictor']}": r[name]
            for r in tables["outcomes"]
            for name in ("mae", "kendall_tau")
        }
    if states is not None:
        reader = open_rollouts(model, states, any_policy=any_policy)
        tables["states"] = state_table(model, reader, token_budget=token_budget)
        measured, tables["state_positions"] = state_metrics(tables["states"])
        figures |= measured
    return Result("prediction", figures, tables, HEADLINE)


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
