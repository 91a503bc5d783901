"""A LenVM's distribution at the prompt beside TIE, ProD and EGTP, fitted on the same rollouts.

    python -m scripts.bench rivals --lenvm LENVM --train runs/demo/rollouts/train \\
        --rollouts runs/demo/rollouts/heldout --out runs/rivals --json rivals.json

Every rival reads the policy's own states over the prompt (`lenvm_rl.model.rivals`), is fitted on
the training prompts with as many samples, and gets three learning rates; the LenVM is the one that
was trained on them. On held-out prompts, against single completions, with 95 % intervals by
resampling prompts: pinball loss of quantiles .1, .5, .9 and .99 and CRPS, in tokens; smaller is
better. `all` is what a reader of no prompt can know: the training lengths of all prompts. The last
line of stdout is one JSON object; `passed` says whether the LenVM is better than each in CRPS and
in the mean pinball loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.bench import harness
from scripts.bench.harness import show

LEVELS = (0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """What is compared."""

    lenvm: Path
    """A LenVM of the target distribution."""
    train: Path
    """Rollout file that it was trained on."""
    rollouts: Path
    """Rollout file of unseen prompts."""
    policy: str = "demo"
    """The policy that wrote both: directory, hub id or demo."""
    out: Path = Path("runs/rivals")
    """Where the picture goes."""
    seeds: int = 3
    """Fits of every rival; scores are means over them."""


def run(options: Options) -> dict[str, Any]:
    """Scores of the LenVM and of every rival."""
    from lenvm_rl.core import LengthBins
    from lenvm_rl.demo.prompts import resolve_policy
    from lenvm_rl.model import LengthValueModel
    from lenvm_rl.model.rivals import RIVALS, fit_rival, read_prompts
    from lenvm_rl.rollouts import RolloutReader

    model = LengthValueModel.from_pretrained(options.lenvm).eval()
    bins: LengthBins = model.config.require_bins()
    policy = resolve_policy(options.policy)
    train, asked = (
        list(RolloutReader(path).iter_rows()) for path in (options.train, options.rollouts)
    )
    fitted_on, states = read_prompts(policy, train), read_prompts(policy, asked)
    prompts = list(dict.fromkeys(tuple(row.prompt_ids) for row in asked))
    with torch.inference_mode():
        outputs = [model.length_outputs(torch.tensor([prompt]))[0, -1] for prompt in prompts]
    everything = torch.bincount(
        bins.index(fitted_on.lengths[fitted_on.lengths > 0]), minlength=len(bins)
    )
    answers = {"lenvm": [torch.stack(outputs).softmax(-1)]}
    answers["all"] = [(everything / everything.sum()).expand(len(prompts), -1)]
    tries: dict[str, list[Any]] = {}
    for name in RIVALS:
        for seed in range(options.seeds):
            rival = fit_rival(name, fitted_on, bins, seed=seed)
            answers.setdefault(name, []).append(rival.predict(states))
            tries.setdefault(name, []).append(rival.tries)
    scores = {
        name: torch.stack([score(p, states.lengths, bins) for p in found]).mean(0)
        for name, found in answers.items()
    }
    table = {name: summary(found, scores["lenvm"]) for name, found in scores.items()}
    _show(table)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(table, options.out / "rivals.png")
    passed = all(
        table[name][key] > table["lenvm"][key] for name in RIVALS for key in ("crps", "pinball")
    )
    counted = {"prompts": len(prompts), "train_prompts": len(fitted_on.lengths)}
    return {**counted, "completions": len(asked), "scores": table, "tries": tries, "passed": passed}


def score(probabilities: Tensor, lengths: Tensor, bins: Any) -> Tensor:
    """[P, 1 + levels] mean over a prompt's samples: CRPS, and pinball losses of `LEVELS`.

    Args:
        probabilities: [P, K] of the bins.
        lengths: [P, G] tokens, 0 where there is no sample.
        bins: what they are of.
    """
    outputs = probabilities.double().clamp(min=1e-30).log()
    d = bins.of(outputs[:, None].expand(-1, lengths.shape[1], -1))
    there = lengths > 0
    x = lengths.double().clamp(min=1)
    losses = [d.crps(x), *(d.pinball(x, level) for level in LEVELS)]
    return torch.stack([(loss * there).sum(1) / there.sum(1) for loss in losses], dim=1)


def summary(scores: Tensor, of_lenvm: Tensor) -> dict[str, float]:
    """Means over prompts; `more_*` is what it has above the LenVM, with its interval."""
    from lenvm_rl.core import interval, resampled_means

    names = ("crps", *(f"pinball_{100 * level:g}" for level in LEVELS))
    found = dict(zip(names, scores.mean(0).tolist(), strict=True))
    found["pinball"] = scores[:, 1:].mean().item()
    more = scores - of_lenvm
    for name, column in (("crps", more[:, 0]), ("pinball", more[:, 1:].mean(1))):
        low, high = interval(resampled_means(column, torch.ones_like(column)))
        found |= {f"more_{name}": column.mean().item(), f"more_{name}_low": low}
        found[f"more_{name}_high"] = high
    return found


def _show(table: dict[str, dict[str, float]]) -> None:
    columns = ("crps", "pinball", *(f"pinball_{100 * level:g}" for level in LEVELS))
    rows = [
        (
            name,
            *(f"{row[c]:.2f}" for c in columns),
            "{more_crps:+.2f} ({more_crps_low:+.2f} to {more_crps_high:+.2f})".format(**row),
        )
        for name, row in table.items()
    ]
    show("Scores at the prompt, tokens", ("predictor", *columns, "CRPS above the LenVM's"), rows)


def draw(table: dict[str, dict[str, float]], path: Path) -> None:
    """What every predictor loses above the LenVM, with intervals."""
    from matplotlib.figure import Figure

    from lenvm_rl.pages.plots import save_png

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    names: Sequence[str] = [name for name in table if name != "lenvm"]
    for axes, key, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("crps", "pinball"),
        ("CRPS", "mean pinball loss"),
        strict=True,
    ):
        for i, name in enumerate(names):
            row = table[name]
            low, high = row[f"more_{key}_low"], row[f"more_{key}_high"]
            axes.plot([low, high], [i, i], color="#2b5c8a", linewidth=2)
            axes.plot([row[f"more_{key}"]], [i], "o", color="#2b5c8a", markersize=5)
        axes.axvline(0, color="#c9a227", linewidth=1.2)
        axes.set_xlabel(f"{label} above the LenVM's {table['lenvm'][key]:.2f} tokens", fontsize=8)
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.set_yticks(range(len(names)), [_NAMES.get(name, name) for name in names], fontsize=9)
    figure.axes[0].invert_yaxis()
    save_png(figure, path)


_NAMES = {
    "all": "training lengths of all prompts",
    "prod_m": "ProD, median",
    "prod_d": "ProD, distribution",
    "egtp": "EGTP",
    "tie": "TIE, log-t",
}
