"""The cost of a length critic per step of GRPO, through main_ppo, on the shipped policy.

    python -m scripts.bench rl_cost --json rl_cost.json
    python -m scripts.bench rl_cost --lenvm runs/demo/checkpoint/lenvm --steps 8

One run with the critic says both: every step times what is the length term's (its values, its
metrics, reading and writing the batch), so `ratio` compares the step with and without it under
the same conditions, whatever else the machine does. A second run without a critic, with the same
data, seeds and batch, is the cross-check (`separate_runs_ratio`; --single leaves it out).

The critic has the policy's own size here (about a million parameters each), which is the worst
case: the figures for large models are an estimate from operations per token, see `estimate`.

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import re
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenvm_rl.demo import policy_path
from lenvm_rl.demo.launch import recipes_dir, run_trainer
from lenvm_rl.demo.policy_data import write_policy_data
from lenvm_rl.model import LengthValueModel, load_tokenizer, save_checkpoint
from scripts.bench import harness
from scripts.bench.harness import CONSOLE

BAR = 1.15
GAMMA = 0.9888  # of the demo's lengths; its value does not change the cost


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """One run or two."""

    lenvm: Path | None = None
    """Checkpoint of the critic; an untrained one otherwise."""
    steps: int = 6
    """Updates; the first is not timed."""
    prompts: int = 16
    """Prompts per step."""
    samples: int = 8
    """Completions per prompt."""
    single: bool = False
    """Leave out the run without a critic."""
    out: Path | None = None
    """Keep data and logs there."""

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"--steps {self.steps}: at least 2, the first one is not timed")


def run(options: Options) -> dict[str, Any]:
    """Figures of one or two runs, and the estimate for large models."""
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(options.out or folder).resolve())
    return {**figures, "estimate_7b_policy_1.5b_lenvm": estimate(policy=7.6e9, lenvm=1.5e9)}


def measure(options: Options, work: Path) -> dict:
    """Figures of one or two runs; their data, checkpoint and logs are in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    lenvm = options.lenvm.resolve() if options.lenvm else fresh_lenvm(work / "lenvm")
    write_policy_data(work / "data", train=options.steps * options.prompts, val=4, seed=1)
    critic = grpo(options, work, "critic", [f"lenvm.checkpoint={lenvm}"])
    step, term = steps_of(critic, "step"), length_terms(critic)
    with_critic = statistics.median(step)
    without = statistics.median(s - t for s, t in zip(step, term, strict=True))
    figures = {
        "steps": len(step),
        "tokens_per_step": statistics.mean(steps_of(critic, "tokens")),
        "step_s": with_critic,
        "step_without_length_term_s": without,
        "ratio": with_critic / without,
        "bar": BAR,
        "passed": with_critic / without <= BAR,
        "len_values_s": statistics.median(steps_of(critic, "len_values")),
        "gen_s": statistics.median(steps_of(critic, "gen")),
        "old_log_prob_s": statistics.median(steps_of(critic, "old_log_prob")),
        "update_actor_s": statistics.median(steps_of(critic, "update_actor")),
    }
    if not options.single:
        alone = ["lenvm.use=none", "lenvm.scale=null", "lenvm.normalise=none"]
        step_alone = statistics.median(steps_of(grpo(options, work, "alone", alone), "step"))
        figures["step_of_a_run_without_critic_s"] = step_alone
        figures["separate_runs_ratio"] = with_critic / step_alone
    return figures


def grpo(options: Options, work: Path, name: str, overrides: list[str]) -> str:
    """The log of one run of recipes/grpo_length/demo."""
    log = work / f"{name}.log"
    run_trainer(
        [
            *("hydra.output_subdir=null", f"hydra.run.dir={work}"),
            f"data.train_files={work / 'data' / 'train.parquet'}",
            f"data.val_files={work / 'data' / 'val.parquet'}",
            f"actor_rollout_ref.model.path={policy_path()}",
            f"data.train_batch_size={options.prompts}",
            f"actor_rollout_ref.rollout.n={options.samples}",
            # Weights stay as they are, so that both runs sample alike.
            "actor_rollout_ref.actor.optim.lr=0",
            f"trainer.total_training_steps={options.steps}",
            *("trainer.save_freq=-1", "trainer.test_freq=-1"),
            f"trainer.default_local_dir={work / name}",
            *overrides,
        ],
        config_dir=recipes_dir() / "grpo_length",
        config_name="demo",
        log_file=log,
        steps=options.steps,
        metric="length/mean",
        console=CONSOLE,
    )
    return log.read_text(errors="replace")


def steps_of(log: str, name: str) -> list[float]:
    """A timing (or `tokens`) of every step but the first, which compiles and warms up."""
    key = "perf/total_num_tokens" if name == "tokens" else f"timing_s/{name}"
    found = re.findall(rf"step:(\d+) - .*?\b{re.escape(key)}:([\d.e+-]+)", log)
    values = {int(step): float(value) for step, value in found}
    return [value for step, value in sorted(values.items()) if step > 1]


def length_terms(log: str) -> list[float]:
    """Seconds per step that are the length term's: all of `adv` but verl's own part."""
    whole, verls = steps_of(log, "adv"), steps_of(log, "verl_adv")
    return [a - b for a, b in zip(whole, verls, strict=True)]


def estimate(*, policy: float, lenvm: float, generation_share: float = 0.5) -> dict:
    """Step time with a frozen or refreshed length critic, from operations per token.

    For N policy and M LenVM parameters, per token: old log-probabilities 2N, actor update 6N + 2N
    (gradient checkpointing), length critic 2M frozen, 2M + 8M refreshed. Sampling takes
    `generation_share` of the step without a critic and does not involve it.

    Args:
        policy, lenvm: parameters.
        generation_share: of the step without a critic.
    """
    training = 10 * policy / (1 - generation_share)
    return {
        "flops_per_token_policy": 10 * policy,
        "flops_per_token_frozen": 2 * lenvm,
        "flops_per_token_refreshed": 10 * lenvm,
        "generation_share": generation_share,
        "ratio_frozen": 1 + 2 * lenvm / training,
        "ratio_refreshed": 1 + 10 * lenvm / training,
    }


def fresh_lenvm(path: Path) -> Path:
    """An untrained LenVM on the shipped policy's own trunk: as large as the policy."""
    model = LengthValueModel.from_policy(policy_path(), gamma=GAMMA)
    return save_checkpoint(model, load_tokenizer(policy_path()), path)
