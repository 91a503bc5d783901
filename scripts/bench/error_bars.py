"""A distribution of the remaining length beside LenVMs of one gamma: what does all of it cost?

    python -m scripts.bench error_bars --demo runs/demo --out runs/error_bars --json error_bars.json

On the rollouts of a finished `lenvm demo`, the plain loop trains LenVMs of the same trunk, data and
steps: one for each of `--gammas` with the paper's squared error, and one distribution. On unseen
prompts, over all tokens of finished responses:

  squared_error   of u at every gamma: a LenVM of one gamma is read at others through its length
  mre_s0, r2      error at the prompt beside its noise floor, and R2 against Monte Carlo values
  coverage, pit   of the distribution's intervals; pinball loss and CRPS in tokens

With `--cut N` the training completions are cut at N tokens first, and other arms follow: the
distribution and the value, each with `drop` and `censored`. Models stay in --out, so that a run
that is stopped goes on. The last line of stdout is one JSON object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scripts.bench import harness
from scripts.bench.harness import CONSOLE, show


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """Where the demo is, and how often to train."""

    demo: Path = Path("runs/demo")
    """Directory of a finished `lenvm demo`: its rollouts and Monte Carlo continuations."""
    out: Path = Path("runs/error_bars")
    """Directory of the trained models."""
    gammas: tuple[float, ...] = (0.95, 0.0, 0.997)
    """Of the single-gamma LenVMs; 0 stands for the file's own."""
    seeds: int = 3
    """Runs of every arm."""
    epochs: float = 3.0
    """Passes over the training file."""
    learning_rate: float = 2e-3
    """Peak of the schedule."""
    boundary_weight: float = 10.0
    """Weight of the state at the prompt's end."""
    cut: int = 0
    """Cut the training completions after so many tokens; 0 leaves them whole."""


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    gamma: float
    distribution: bool
    truncated: str = "drop"


def arms(options: Options, gamma: float) -> list[Arm]:
    """The arms of a run; `gamma` is the file's."""
    if options.cut:
        return [
            Arm("distribution-drop", gamma, True, "drop"),
            Arm("distribution-censored", gamma, True, "censored"),
            Arm("value-drop", gamma, False, "drop"),
            Arm("value-censored", gamma, False, "censored"),
        ]
    values = [Arm(f"value-{g or gamma:.4g}", g or gamma, False) for g in options.gammas]
    return [Arm("distribution", gamma, True), *values]


def run(options: Options) -> Iterator[dict[str, Any]]:
    """The figures of the runs so far, so that a run that is stopped leaves some."""
    from lenvm_rl.core import gamma_from_lengths
    from lenvm_rl.rollouts import RolloutReader

    rollouts = options.demo / "rollouts"
    if not (rollouts / "heldout").is_dir():
        raise ValueError(f"{options.demo} holds no finished demo: run `lenvm demo` there first.")
    train = rollouts / "train"
    lengths = [row.length for row in RolloutReader(train).iter_rows()]
    gamma = gamma_from_lengths(lengths)
    if options.cut:
        train = _cut_file(train, options.out / f"cut-{options.cut}", options.cut)
    held = [row for row in RolloutReader(rollouts / "heldout").iter_rows() if not row.truncated]
    gammas = [g or gamma for g in options.gammas]
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for arm in arms(options, gamma):
            model = _trained(arm, train, max(lengths), seed, options)
            figures = measure(model, options.demo, held, gammas)
            found.setdefault(arm.name, []).append(figures)
            CONSOLE.print(f"seed {seed}, {arm.name}: {figures}")
        yield {"gamma": gamma, "runs": found, "means": _means(found)}
    _show(_means(found))


def measure(
    model: Any, demo: Path, held: Sequence[Any], gammas: Sequence[float]
) -> dict[str, float]:
    """Figures of one model on completions that it has not seen.

    Args:
        held: finished completions of the held-out file.
        gammas: where u is compared.
    """
    from lenvm_rl.core import length_to_u, predicted_length
    from lenvm_rl.evals.prediction.evaluate import evaluate
    from lenvm_rl.model.forward import iter_outputs, model_space

    config, space = model.config, model_space(model)
    squares = dict.fromkeys(gammas, 0.0)
    error = bias = 0.0
    tokens = 0
    for row, outputs in iter_outputs(model, held):
        left = torch.arange(row.length, 0, -1, dtype=torch.float64)
        own = predicted_length(config.read(outputs.double()), **space)
        mean = own if config.bins is None else config.length_bins.of(outputs.double()).mean()
        tokens += row.length
        bias += (mean - left).sum().item()
        error += (own - left).abs().sum().item()
        for g in gammas:
            z = None if config.bins is None else config.read(outputs.double(), gamma=g)
            u = length_to_u(own, gamma=g) if z is None else z.sigmoid()
            squares[g] += (u - length_to_u(left, gamma=g)).square().sum().item()
    result = evaluate(
        model,
        demo / "rollouts" / "heldout",
        states=demo / "prediction" / "states",
        any_policy=True,
    )
    wanted = ("mre_s0", "mre_noise_floor", "r2_monte_carlo", "calibration_error")
    more = ("coverage_50", "coverage_90", "crps", "pinball_50", "pinball_90")
    return {
        **{f"squared_error_{g:.4g}": total / tokens for g, total in squares.items()},
        "mean_bias": bias / tokens,
        "length_error": error / tokens,
        **{name: result.figures[name] for name in (*wanted, *more) if name in result.figures},
    }


def _trained(arm: Arm, train: Path, longest: int, seed: int, options: Options) -> Any:
    """The model of an arm, from --out where it is already."""
    from lenvm_rl.core import DISTRIBUTION, LengthBins
    from lenvm_rl.demo import policy_path
    from lenvm_rl.model import LengthValueModel, describe_policy, load_tokenizer, save_checkpoint
    from lenvm_rl.model.training import Recipe
    from lenvm_rl.model.training import train as fit

    place = options.out / f"{arm.name}-{seed}"
    if place.is_dir():
        return LengthValueModel.from_pretrained(place)
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(policy_path())
    bins = LengthBins.up_to(longest).edges if arm.distribution else None
    model = LengthValueModel.from_policy(
        policy_path(),
        gamma=arm.gamma,
        target=DISTRIBUTION if arm.distribution else "return",
        bins=bins,
        policy=describe_policy(str(policy_path()), tokenizer),
    )
    recipe = Recipe(
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_rows=128,
        weight_decay=0.01,
        boundary_weight=options.boundary_weight,
        truncated=arm.truncated,
        seed=seed,
    )
    CONSOLE.print(f"{place}: {fit(model, train, recipe, label=arm.name)}")
    save_checkpoint(model, tokenizer, place)
    return model.eval()


def _cut_file(source: Path, out: Path, limit: int) -> Path:
    """The rollout file with every response cut at `limit` tokens."""
    from lenvm_rl.rollouts import RolloutReader, RolloutWriter

    if out.is_dir():
        return out
    reader = RolloutReader(source)
    with RolloutWriter(out, tokenizer_sha=reader.metadata["tokenizer_sha"]) as writer:
        for row in reader.iter_rows():
            if row.length > limit:
                short = list(row.response_ids[:limit])
                row = replace(
                    row, response_ids=short, finish_reason="length", response_logprobs=None
                )
            writer.append([row])
    return out


def _means(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]}
        for name, runs in found.items()
    }


def _show(means: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(key for figures in means.values() for key in figures))
    rows = [
        (
            column,
            *(f"{figures[column]:.5g}" if column in figures else "" for figures in means.values()),
        )
        for column in columns
    ]
    show("Means over seeds", ("figure", *means), rows)
