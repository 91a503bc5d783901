"""How good are a LenVM's predictions? Measured on held-out completions and on sampled truth.

One table for each question; every number is defined where it is computed:

    prompts      is the length known before the first token? (prompt boundary, N samples a prompt)
    domains      the same by data source, in the layout of the paper's table 3
    outcomes     how far off from what single requests did? (as TRAIL, PLP and vllm-ltr report)
    states       is V right inside responses? (against Monte Carlo continuations, where given)
    positions    how far off are remaining lengths at 0/25/50/75/90 % of each response?
    calibration  is the mean outcome at a prediction the prediction itself? (all tokens)
    position_calibration   and at 0/25/50/75 % of each response?

A completion cut by the token limit counts with the length seen, which is a lower bound; the share
of such rows is reported, and above 1 % a warning says so.

Bias by position is measured against Monte Carlo values; `positions` says why outcomes mislead.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    calibration,
    length_to_horizon,
    predicted_length,
    r2,
    remaining_length,
    value_of_logit,
)
from lenvm_rl.evals.prediction.boundary import PREDICTORS, boundary_metrics, boundary_table
from lenvm_rl.evals.prediction.domains import domain_table
from lenvm_rl.evals.prediction.monte_carlo import state_metrics, state_table
from lenvm_rl.evals.prediction.naive import NaivePredictors
from lenvm_rl.evals.prediction.outcome_errors import outcome_errors
from lenvm_rl.evals.prediction.positions import Along, position_calibration, position_table
from lenvm_rl.evals.prediction.states import sample_states
from lenvm_rl.evals.result import finite, save_results
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits, model_space
from lenvm_rl.model.policy_check import open_rollouts
from lenvm_rl.rollouts import Rollout
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler

if TYPE_CHECKING:
    from rich.console import Group

_CUT_WARNING = 0.01


HEADLINE = (
    ("mre_s0", "mean relative error at the prompt", ".3f"),
    ("mre_noise_floor", "noise floor", ".3f"),
    ("kendall_tau_s0", "Kendall tau", ".3f"),
    ("r2_monte_carlo", "R2 inside responses", ".3f"),
)


@dataclass(frozen=True, eq=False)
class PredictionReport:
    """Figures and tables of one evaluation."""

    figures: dict[str, Any]
    """Every number by name; NaN where it is not defined (such as a noise floor of one sample)."""
    tables: dict[str, list[dict[str, Any]]]
    """prompts, domains, outcomes, positions, calibration, position_calibration, and, with Monte
    Carlo, states and state_positions."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def table(self) -> Group:
        """The report on one screen, to print with rich."""
        from lenvm_rl.evals.views import prediction_view

        return prediction_view(self)

    def save(self, out: str | Path) -> list[Path]:
        """Write prediction.json, .jsonl, one CSV per table, and the PNG figures into `out`."""
        from lenvm_rl.evals.prediction.draw import plot_prediction

        paths = save_results(out, "prediction", self.figures, self.tables, HEADLINE)
        return paths + plot_prediction(self.figures, self.tables, Path(out))


def run_prediction(
    lenvm: str | Path,
    heldout: str | Path,
    out: str | Path,
    *,
    train: str | Path | None = None,
    policy: str | Path | None = None,
    states: int = 160,
    continuations: int = 32,
    batch_size: int = 128,
    seed: int = 0,
    any_policy: bool = False,
    progress: bool = False,
) -> PredictionReport:
    """Evaluate a LenVM directory on held-out rollouts and save everything into `out`.

    Args:
        lenvm: directory of the value model.
        heldout: rollout file of prompts it was not trained on, several samples per prompt.
        out: result directory; continuations go to `out/states`, so that a killed run continues.
        train: rollout file it was trained on, for the naive predictors; None leaves them out.
        policy: the model that wrote `heldout`; None leaves the Monte Carlo part out.
        states, continuations: how many states, and continuations of each.
        batch_size: rows sampled together.
        seed: of the choice of states and of the continuations.
        any_policy: accept rollouts of another policy than the LenVM's.
        progress: draw a bar on stderr.
    """
    model = LengthValueModel.from_pretrained(lenvm)
    if policy is not None:
        open_rollouts(model, heldout, any_policy=any_policy)  # before anything is sampled
        sampler = ContinuousSampler.from_pretrained(str(policy), max_batch=batch_size)
        sample_states(
            sampler,
            heldout,
            Path(out) / "states",
            policy_name=str(policy),
            count=states,
            n=continuations,
            seed=seed,
            progress=progress,
        )
    report = evaluate_prediction(
        model,
        heldout,
        train=train,
        states=Path(out) / "states" if policy is not None else None,
        seed=seed,
        any_policy=any_policy,
    )
    report.save(out)
    return report


def evaluate_prediction(
    model: LengthValueModel,
    heldout: str | Path,
    *,
    train: str | Path | None = None,
    states: str | Path | None = None,
    token_budget: int = 16_384,
    seed: int = 0,
    any_policy: bool = False,
) -> PredictionReport:
    """Evaluate from rollout files alone; no policy is needed.

    Memory grows with the held-out set (about 100 bytes per token), not with the training set.

    Args:
        model: a LenVM with its gamma.
        heldout: rollout file; samples of a prompt share a prompt_id.
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
    rows = list(open_rollouts(model, heldout, any_policy=any_policy).iter_rows())
    rows.sort(key=lambda row: (row.prompt_id, row.sample_id))
    naive = None
    if train is not None:
        reader = open_rollouts(model, train, any_policy=any_policy)
        naive = NaivePredictors.of_rollouts(reader, gamma=gamma)
    along: list[Along] = list(iter_logits(model, rows, token_budget=token_budget))
    along.sort(key=lambda item: (item[0].prompt_id, item[0].sample_id))

    tables = {"prompts": boundary_table(_first_lengths(model, along), rows, naive, gamma=gamma)}
    figures = _counts(rows, gamma)
    figures |= boundary_metrics(tables["prompts"], rows, gamma=gamma, seed=seed)
    tables["domains"] = domain_table(tables["prompts"], rows, gamma=gamma, seed=seed)
    ended = [item for item in along if not item[0].cut]
    if ended:
        tables["outcomes"] = _outcome_table(model, tables["prompts"], ended, naive)
        tables["positions"] = position_table(model, ended, naive)
        tables["position_calibration"] = position_calibration(model, ended)
        tokens, tables["calibration"] = _token_metrics(model, ended)
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
    return PredictionReport(figures, tables)


def _counts(rows: Sequence[Rollout], gamma: float) -> dict[str, Any]:
    cut = sum(row.cut for row in rows) / len(rows)
    if cut > _CUT_WARNING:
        warnings.warn(
            f"{cut:.1%} of the held-out completions were cut by the token limit: true lengths are "
            "longer than measured. Sample them with more tokens.",
            stacklevel=3,
        )
    return {
        "gamma": gamma,
        "completions": len(rows),
        "tokens": sum(row.length for row in rows),
        "share_cut": cut,
    }


def _first_lengths(model: LengthValueModel, along: Iterable[Along]) -> dict[str, float]:
    """Predicted length at s_0 of every prompt (a function of the prompt alone)."""
    return {row.prompt_id: predicted_length(z[:1], **model_space(model)).item() for row, z in along}


def _outcome_table(
    model: LengthValueModel,
    prompts: Sequence[Mapping[str, Any]],
    along: Sequence[Along],
    naive: NaivePredictors | None,
) -> list[dict[str, Any]]:
    """Errors against single finished responses: at s_0 (`at` "s0") and over all states ("all")."""
    first = {row["prompt_id"]: row for row in prompts}
    total = torch.tensor([float(row.length) for row, _ in along])
    table = []
    for name in PREDICTORS:
        if name in prompts[0]:
            guess = torch.tensor([first[row.prompt_id][name] for row, _ in along])
            table.append({"at": "s0", "predictor": name, **outcome_errors(guess, total)})
    written = [torch.arange(row.length, dtype=torch.float32) for row, _ in along]
    left = torch.cat([row.length - t for (row, _), t in zip(along, written, strict=True)])
    guesses = {"lenvm": [predicted_length(z, **model_space(model)) for _, z in along]}
    if naive is not None:
        for (row, _), t in zip(along, written, strict=True):
            found = naive.remaining_lengths(torch.tensor([len(row.prompt_ids)]), t[None])
            for name, guess in found.items():
                guesses.setdefault(name, []).append(guess[0].float())
    for name, parts in guesses.items():
        table.append({"at": "all", "predictor": name, **outcome_errors(torch.cat(parts), left)})
    return table


def _token_metrics(
    model: LengthValueModel, along: Sequence[Along]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """V against the outcomes G_t over all tokens of finished responses, every token alike.

    `r2_returns` cannot reach 1: the returns are single outcomes, V their mean.
    """
    z = torch.cat([z for _, z in along])
    lengths = [remaining_length(torch.ones(1, row.length))[0] for row, _ in along]
    u = length_to_horizon(torch.cat(lengths), gamma=model.config.require_gamma())
    u_hat = -value_of_logit(z, **model_space(model))
    curve = calibration(u_hat, u, bins=20)
    low, middle, high = torch.quantile(_thinned(u_hat), torch.tensor([0.05, 0.5, 0.95])).tolist()
    figures = {
        "mse": (u_hat - u).double().square().mean().item(),
        "r2_returns": r2(u_hat, u) if len(u) > 1 else float("nan"),
        "horizon_mean": u_hat.double().mean().item(),
        "horizon_std": u_hat.double().std(correction=0).item(),
        "horizon_p5": low,
        "horizon_p50": middle,
        "horizon_p95": high,
        "calibration_error": curve.error,
    }
    bins = zip(curve.count.tolist(), curve.predicted.tolist(), curve.actual.tolist(), strict=True)
    return figures, [{"tokens": n, "predicted": p, "actual": a} for n, p, a in bins]


def _thinned(x: Tensor, most: int = 1_000_000) -> Tensor:
    """Every k-th element, so that torch.quantile takes it."""
    return x[:: max(1, -(-x.numel() // most))]
