"""A LenVM on the policy's own first blocks, trained by verl's critic workers on the CPU.

A third of the policy's blocks is what two cores can train on a million tokens in some hours; the
settings are recipes/pretrain/smollm2.yaml. Truncated completions are bounds (censored), and gamma
is read off the training file: with the 99th percentile at the token limit, a truncated response is
within .01 of u = 1 whatever its true length. The head is a distribution by default: one training
then serves any gamma, quantiles and chances (lenvm_rl/core/distribution.py).
"""

from __future__ import annotations

import os
import re
import shlex
import time
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from lenvm_rl.demo.launch import TrainingFailed, recipes_dir, run_trainer
from lenvm_rl.model import LengthValueConfig
from lenvm_rl.rollouts import RolloutReader
from recipes.smollm2.results import Step, StepFailed

RECIPE = "smollm2"
LONGEST = 1024
"""Tokens of the longest response, as sampled: the bins of a distribution reach beyond it."""
HELDOUT_FRACTION = 0.05
"""Of the training prompts, to watch the training by; the evaluation has its own."""
_METRIC = re.compile(r"(?:- |\b)([a-z_]+(?:/[\w.]+)+):([-+.\deE]+|nan)")


def run(
    dir: Path = Path("runs/smollm2"),
    *,
    layers: int = 10,
    target: Literal["distribution", "value"] = "distribution",
    epochs: int = 2,
    override: list[str] | None = None,
    seed: int = 0,
    record: bool = False,
) -> dict[str, Any]:
    """Train DIR/lenvm on DIR/rollouts/train; hours of two cores, and it goes on.

    Example: `python -m recipes.smollm2 train`

    Args:
        dir: Directory of the recipe's files.
        layers: Blocks of the policy that make the trunk.
        target: What the head predicts.
        epochs: Passes over the completions.
        override: Further settings of verl, e.g. critic.optim.lr=1e-4; repeatable.
        seed: Seed of the split, the head and the order of completions.
        record: Write the result into the recipe's own folder.
    """
    step = Step("train", dir, record, seed)
    fit, validation = _split(step)
    init = dir / "init"
    if not (init / "config.json").exists():
        step.lenvm(
            *("init", "--policy", dir / "policy", "--layers", str(layers)),
            *(head_words() if target == "distribution" else ()),
            *("--seed", str(seed), "--out", init),
        )
    checkpoint = (dir / "checkpoint").absolute()
    words = [
        f"critic.model.path={init.absolute()}",
        f"lenvm.train_rollouts={fit.absolute()}",
        f"lenvm.val_rollouts={validation.absolute()}",
        f"lenvm.seed={seed}",
        f"trainer.total_epochs={epochs}",
        f"trainer.default_local_dir={checkpoint}",
        *(override or ()),
    ]
    log = dir / "train.log"
    _train(step, words, rows=len(RolloutReader(fit)), epochs=epochs, log=log)
    lenvm = dir / "lenvm"
    lenvm.unlink(missing_ok=True)
    lenvm.symlink_to(os.path.relpath(checkpoint / "lenvm", dir.absolute()))
    config = LengthValueConfig.from_pretrained(lenvm)
    return step.save(
        {
            "lenvm": str(lenvm),
            "trunk": config.trunk,
            "gamma": config.gamma,
            "trained_on": config.training,
            "measured": config.measured,
            "epochs": epochs,
            **last_metrics(log.read_text()),
        }
    )


def head_words() -> tuple[str, ...]:
    """Options of `lenvm init` for a head that predicts the distribution."""
    return "--head-target", "distribution", "--longest", str(LONGEST)


def _split(step: Step) -> tuple[Path, Path]:
    """The training completions without those of some prompts, and these: made once."""
    rollouts = step.dir / "rollouts"
    fit, validation = rollouts / "fit", rollouts / "validation"
    if not (fit.exists() and validation.exists()):
        step.lenvm(
            *("split", rollouts / "train", "--train", fit, "--heldout", validation),
            *("--heldout-fraction", str(HELDOUT_FRACTION), "--seed", str(step.seed)),
        )
    return fit, validation


def _train(step: Step, words: list[str], *, rows: int, epochs: int, log: Path) -> None:
    """Run verl's trainer with a bar; what it prints goes to `log`.

    Raises:
        StepFailed: it failed, or was silent for an hour.
    """
    folder = recipes_dir() / "pretrain"
    batch = yaml.safe_load((folder / f"{RECIPE}.yaml").read_text())["data"]["train_batch_size"]
    line = shlex.join(["recipes/pretrain/run.sh", RECIPE, *words]).replace(f"{Path.cwd()}/", "")
    print(f"$ {line}", flush=True)
    begun = time.monotonic()
    try:
        run_trainer(
            [*words, f"hydra.run.dir={(step.dir / 'hydra').absolute()}"],
            config_dir=folder,
            config_name=RECIPE,
            log_file=log,
            steps=-(-rows * epochs // batch),
            metric="critic/mse",
            console=Console(),
            silent_after_s=3600.0,
        )
    except TrainingFailed as error:
        raise StepFailed(str(error)) from error
    step.commands.append({"command": line, "seconds": round(time.monotonic() - begun, 1)})


def last_metrics(log: str) -> dict[str, Any]:
    """What verl printed in its steps: the last validation, the last loss, tokens a second.

    Args:
        log: of lines `step:N - key:value - key:value`.
    Returns:
        steps, tokens_per_s (median of the steps, prompts counted), mse and val.
    """
    found: dict[str, float] = {}
    speeds, steps = [], 0
    for line in log.splitlines():
        if match := re.search(r"\bstep:(\d+) - ", line):
            metrics = {key: float(value) for key, value in _METRIC.findall(line[match.end() - 3 :])}
            steps, found = int(match[1]), found | metrics
            speeds += [metrics[key] for key in ("perf/tokens_per_second",) if key in metrics]
    return {
        "steps": steps,
        "tokens_per_s": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "mse": found.get("critic/mse"),
        "val": {
            key.removeprefix("val/"): value
            for key, value in found.items()
            if key.startswith("val/") and value == value
        },
    }
