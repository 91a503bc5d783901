"""How good are a LenVM's predictions? Measured on held-out completions and on sampled truth.

Five questions, one table each; every number is defined where it is computed:

    prompts      is the length known before the first token? (prompt boundary, N samples a prompt)
    states       is V right inside responses? (against Monte Carlo continuations, where given)
    positions    how far off are remaining lengths at 0/25/50/75/90 % of each response?
    calibration  is the mean outcome at a prediction the prediction itself?
    tokens       what does V look like over all tokens?

A completion cut by the token limit counts with the length seen, which is a lower bound; the share
of such rows is reported, and above 1 % a warning says so.

A trap: the relative position of a state is known only afterwards. Among states at 50 % of their
response, those at t tokens have exactly t left, whatever could have happened: at a fixed relative
position even a perfect V shows bias against single outcomes. Bias by position is therefore
measured against Monte Carlo values, and calibration over all tokens together.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lenvm_rl.core import (
    POSITIONS,
    at_positions,
    calibration,
    length_to_horizon,
    predicted_length,
    r2,
    relative_error,
    remaining_length,
    value_of_logit,
)
from lenvm_rl.evals.boundary import boundary_metrics, boundary_table
from lenvm_rl.evals.monte_carlo import state_metrics, state_table
from lenvm_rl.evals.naive import NaivePredictors
from lenvm_rl.evals.results import finite, save_results
from lenvm_rl.evals.states import sample_states
from lenvm_rl.evals.values import iter_logits, model_space
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.generate import ContinuousSampler
from lenvm_rl.model.tokens import check_tokenizer_sha
from lenvm_rl.rollouts import Rollout, RolloutReader

if TYPE_CHECKING:
    from rich.console import Group

_CHUNK = 256  # rows padded together when positions are read off
_CUT_WARNING = 0.01


@dataclass(frozen=True, eq=False)
class PredictionReport:
    """Figures and tables of one evaluation."""

    figures: dict[str, Any]
    """Every number by name; NaN where it is not defined (such as a noise floor of one sample)."""
    tables: dict[str, list[dict[str, Any]]]
    """prompts, positions, calibration, and, with Monte Carlo, states and state_positions."""

    def to_dict(self) -> dict[str, Any]:
        """Figures for JSON: None where a number is not defined."""
        return finite(self.figures)

    def table(self) -> Group:
        """The report on one screen, to print with rich."""
        from lenvm_rl.evals.views import prediction_view

        return prediction_view(self)

    def save(self, out: str | Path) -> list[Path]:
        """Write prediction.json, .jsonl, one CSV per table, and the PNG figures into `out`."""
        from lenvm_rl.evals.plots import plot_prediction

        paths = save_results(out, "prediction", self.figures, self.tables)
        return paths + plot_prediction(self.figures, self.tables, Path(out))


@dataclass(frozen=True, eq=False)
class _Along:
    """One held-out completion with what the model says along it."""

    row: Rollout
    logits: Tensor  # [L] z of s_0 .. s_{L-1}


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
        progress: draw a bar on stderr.
    """
    model = LengthValueModel.from_pretrained(lenvm)
    if policy is not None:
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
    Raises:
        ValueError: files of another tokenizer than the model's, or rows longer than its context.
    """
    gamma = model.config.require_gamma()
    rows = list(_reader(model, heldout).iter_rows())
    rows.sort(key=lambda row: (row.prompt_id, row.sample_id))
    naive = None if train is None else _fit_naive(_reader(model, train), gamma)
    along = [_Along(*item) for item in iter_logits(model, rows, token_budget=token_budget)]
    along.sort(key=lambda item: (item.row.prompt_id, item.row.sample_id))

    tables = {"prompts": boundary_table(_first_lengths(model, along), rows, naive, gamma=gamma)}
    figures = _counts(rows, gamma)
    figures |= boundary_metrics(tables["prompts"], rows, gamma=gamma, seed=seed)
    ended = [item for item in along if not item.row.cut]
    if ended:
        tables["positions"] = _position_table(model, ended, naive)
        tokens, tables["calibration"] = _token_metrics(model, ended)
        figures |= tokens
        figures |= {
            f"relative_error_{r['predictor']}_{round(100 * r['position']):02d}": r["relative_error"]
            for r in tables["positions"]
        }
    if states is not None:
        reader = _reader(model, states)
        tables["states"] = state_table(model, reader, token_budget=token_budget)
        measured, tables["state_positions"] = state_metrics(tables["states"])
        figures |= measured
    return PredictionReport(figures, tables)


def _reader(model: LengthValueModel, path: str | Path) -> RolloutReader:
    reader = RolloutReader(path)
    check_tokenizer_sha(
        (model.config.policy or {}).get("tokenizer_sha"),
        reader.metadata["tokenizer_sha"],
        expected_of="the LenVM",
        got_of=str(path),
    )
    return reader


def _fit_naive(reader: RolloutReader, gamma: float) -> NaivePredictors:
    prompts, lengths = [], []
    for row in reader.iter_rows(["prompt_ids", "response_ids", "finish_reason"]):
        if row["finish_reason"] == "stop":
            prompts.append(len(row["prompt_ids"]))
            lengths.append(len(row["response_ids"]))
    return NaivePredictors.fit(prompts, lengths, gamma=gamma)


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


def _first_lengths(model: LengthValueModel, along: Iterable[_Along]) -> dict[str, float]:
    """Predicted length at s_0 of every prompt (a function of the prompt alone)."""
    return {
        item.row.prompt_id: predicted_length(item.logits[:1], **model_space(model)).item()
        for item in along
    }


def _position_table(
    model: LengthValueModel, along: Sequence[_Along], naive: NaivePredictors | None
) -> list[dict[str, Any]]:
    """Mean |l_hat - l| / l, and RMSE of u_hat, at relative positions of finished responses.

    Outcomes are single samples, so that even a perfect model has errors here; compare predictors.
    """
    gamma = model.config.require_gamma()
    logits, offsets = [], []
    for start in range(0, len(along), _CHUNK):
        chunk = [item.logits for item in along[start : start + _CHUNK]]
        z = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True)
        mask = torch.arange(z.shape[1]) < torch.tensor([len(c) for c in chunk])[:, None]
        logits.append(at_positions(z, mask))
        t = torch.arange(z.shape[1], dtype=torch.float32).expand_as(z)
        offsets.append(at_positions(t, mask))
    z_BP, t_BP = torch.cat(logits), torch.cat(offsets)
    left_BP = torch.tensor([item.row.length for item in along])[:, None] - t_BP
    guesses = {"lenvm": predicted_length(z_BP, **model_space(model))}
    if naive is not None:
        prompts = torch.tensor([len(item.row.prompt_ids) for item in along])
        guesses |= naive.remaining_lengths(prompts, t_BP)
    u_BP = length_to_horizon(left_BP, gamma=gamma)
    table = []
    for name, guess_BP in guesses.items():
        error = relative_error(guess_BP.double(), left_BP.double()).mean(0)
        # A value model that predicts a mean horizon is scored on it; others on their length's.
        u_hat = (
            -value_of_logit(z_BP, **model_space(model))
            if name == "lenvm"
            else length_to_horizon(guess_BP, gamma=gamma)
        )
        squared = (u_hat - u_BP).double().square().mean(0)
        for i, position in enumerate(POSITIONS):
            table.append(
                {
                    "position": position,
                    "predictor": name,
                    "relative_error": error[i].item(),
                    "horizon_rmse": squared[i].sqrt().item(),
                    "responses": len(along),
                }
            )
    return table


def _token_metrics(
    model: LengthValueModel, along: Sequence[_Along]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """V against the outcomes G_t over all tokens of finished responses, every token alike.

    `r2_returns` cannot reach 1: the returns are single outcomes, V their mean.
    """
    z = torch.cat([item.logits for item in along])
    lengths = [remaining_length(torch.ones(1, len(item.logits)))[0] for item in along]
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
