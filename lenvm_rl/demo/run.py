"""The main job on a CPU, end to end, with the shipped policy: `lenvm demo`.

    sample    completions of `TRAIN_PROMPTS` problems, and their length report
    pretrain  a LenVM on the policy's trunk, by `python -m verl.trainer.main_ppo` (recipe `demo`)
    verify    on problems that it has not seen: predictions against many samples of each prompt,
              and values against Monte Carlo continuations from inside responses
    guide     the same policy to shorter answers by the LenVM, beside a hard token budget

Every stage resumes: a demo that was killed continues when it is started again.

    runs/demo/
      rollouts/{train,validation,heldout}   rollout files
      lengths/                              length report of what was sampled
      init/, checkpoint/lenvm               the model before and after training
      prediction/, tradeoff/                result tables and figures
      pretrain.log, summary.json
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lenvm_rl.demo import policy_path, task
from lenvm_rl.demo.launch import recipes_dir, run_trainer
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.evals.prediction import evaluate as prediction
from lenvm_rl.evals.prediction.draw import view as prediction_view
from lenvm_rl.evals.result import Result
from lenvm_rl.evals.tradeoff import evaluate as tradeoff
from lenvm_rl.evals.tradeoff.draw import view as tradeoff_view
from lenvm_rl.model import LengthValueModel, describe_policy, load_tokenizer, save_checkpoint
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import LengthReport, length_report, report_table, split_by_prompt
from lenvm_rl.sampling.transformers.engine import sample_to_file

TRAIN_PROMPTS, TRAIN_SAMPLES = 1900, 4
VALIDATION_PROMPTS = 48  # of the training prompts: what verl's validation looks at
HELDOUT_PROMPTS, HELDOUT_SAMPLES = 48, 64
STATES, CONTINUATIONS = 192, 32
GUIDED_PROMPTS, GUIDED_SAMPLES = 16, 4
BETAS = (-25.0, -6.0, -3.0)
MAX_TOKENS = 512
EPOCHS, BATCH = 3, 128


def run_demo(
    out: Path, *, seed: int = 0, setup_s: float | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Run all stages into `out` and print a one-screen summary.

    Args:
        out: result directory; an interrupted demo in it is continued.
        seed: of problems, samples and training.
        setup_s: seconds that installation took, None when it had been done before.

    Returns:
        The figures of `summary.json`.
    """
    console = console or Console()
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    console.rule("1/4  sample completions")
    lengths = sample_rollouts(out, seed=seed, console=console)
    console.rule("2/4  pretrain with verl's critic workers")
    lenvm = pretrain(out, rows=lengths.overall.rows, seed=seed, console=console)
    console.rule("3/4  verify on problems it has not seen")
    report = verify(out, lenvm, seed=seed, console=console)
    console.rule("4/4  guide: shorter answers, beside a hard budget")
    guided = guide(out, lenvm, seed=seed, console=console).to_dict()
    figures = report.to_dict()
    summary = {
        "setup_s": setup_s,
        "run_s": round(time.monotonic() - started, 1),
        "mre_s0": figures["mre_s0"],
        "mre_s0_corrected": figures["mre_s0_corrected"],
        "mre_noise_floor": figures["mre_noise_floor"],
        "mre_naive_mean": figures["mre_naive_mean"],
        "mre_naive_mean_corrected": figures["mre_naive_mean_corrected"],
        "mre_naive_linear": figures["mre_naive_linear"],
        "mre_naive_linear_corrected": figures["mre_naive_linear_corrected"],
        "r2_monte_carlo": figures["r2_monte_carlo"],
        "r2_monte_carlo_raw": figures["r2_monte_carlo_raw"],
        "guided_kept": guided["accuracy_kept_there"],
        "guided_length": guided["half_accuracy_length"],
        "gamma": figures["gamma"],
        "completions": lengths.overall.rows,
        "share_truncated": lengths.overall.share_truncated,
        "seed": seed,
    }
    console.print(summary_table(summary, out, lenvm))
    return summary


def sample_rollouts(out: Path, *, seed: int, console: Console) -> LengthReport:
    """Sample the training problems, report their lengths, set some prompts aside."""
    rollouts = out / "rollouts"
    sampled = sample_to_file(
        policy_path(),
        demo_prompts(TRAIN_PROMPTS, seed=seed),
        rollouts / "sampled",
        n=TRAIN_SAMPLES,
        max_tokens=MAX_TOKENS,
        seed=seed,
        progress=True,
    )
    for side in ("train", "validation"):  # quick to make again, and then surely of this sampling
        shutil.rmtree(rollouts / side, ignore_errors=True)
    split_by_prompt(
        rollouts / "sampled",
        rollouts / "train",
        rollouts / "validation",
        heldout_prompts=VALIDATION_PROMPTS,
        seed=seed,
    )
    report = length_report(rollouts / "train")
    report.save(out / "lengths")
    console.print(report_table(report))
    console.print(f"{sampled.tokens_per_s:,.0f} tokens/s with transformers on this machine")
    return report


def pretrain(out: Path, *, rows: int, seed: int, console: Console) -> Path:
    """Train a LenVM on the policy's trunk through verl's entry point; returns its directory."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(policy_path())
    model = LengthValueModel.from_policy(
        policy_path(), policy=describe_policy(str(policy_path()), tokenizer)
    )
    save_checkpoint(model, tokenizer, out / "init")
    checkpoint = (out / "checkpoint").absolute()
    run_trainer(
        [
            f"critic.model.path={(out / 'init').absolute()}",
            f"lenvm.train_rollouts={(out / 'rollouts/train').absolute()}",
            f"lenvm.val_rollouts={(out / 'rollouts/validation').absolute()}",
            f"lenvm.seed={seed}",
            f"data.train_batch_size={BATCH}",
            f"trainer.total_epochs={EPOCHS}",
            f"trainer.default_local_dir={checkpoint}",
            f"hydra.run.dir={(out / 'hydra').absolute()}",
        ],
        config_dir=recipes_dir() / "pretrain",
        config_name="demo",
        log_file=out / "pretrain.log",
        steps=-(-rows * EPOCHS // BATCH),
        metric="critic/mse",
        console=console,
    )
    return checkpoint / "lenvm"


def heldout_prompts(seed: int, count: int = HELDOUT_PROMPTS) -> list[Prompt]:
    """`count` problems that no training problem equals."""
    taken = {str(p.messages) for p in demo_prompts(TRAIN_PROMPTS, seed=seed)}
    fresh = demo_prompts(2 * count, seed=seed + 1_000_003)
    return [prompt for prompt in fresh if str(prompt.messages) not in taken][:count]


def guide(out: Path, lenvm: Path, *, seed: int, console: Console) -> Result:
    """Guide the policy to shorter answers of held-out problems."""
    result = tradeoff.run(
        policy_path(),
        heldout_prompts(seed)[:GUIDED_PROMPTS],
        out / "tradeoff",
        lenvm=lenvm,
        grader=task.grade,
        settings=tradeoff.Settings(betas=BETAS, n=GUIDED_SAMPLES, max_tokens=MAX_TOKENS, seed=seed),
        progress=True,
    )
    console.print(tradeoff_view(result))
    return result


def verify(out: Path, lenvm: Path, *, seed: int, console: Console) -> Result:
    """Evaluate on problems that no training problem equals."""
    sample_to_file(
        policy_path(),
        heldout_prompts(seed),
        out / "rollouts" / "heldout",
        n=HELDOUT_SAMPLES,
        max_tokens=MAX_TOKENS,
        seed=seed,
        progress=True,
    )
    result = prediction.run(
        lenvm,
        out / "rollouts" / "heldout",
        out / "prediction",
        train=out / "rollouts" / "train",
        policy=policy_path(),
        settings=prediction.Settings(states=STATES, continuations=CONTINUATIONS, seed=seed),
    )
    console.print(prediction_view(result))
    return result


def summary_table(summary: dict[str, Any], out: Path, lenvm: Path) -> Table:
    """What was learned and how good it is, with the bars to read the numbers by."""
    table = Table(title="lenvm demo: what was learned", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    percent = {k: f"{100 * v:.1f} %" for k, v in summary.items() if k.startswith("mre")}
    table.add_row(
        "length before the first token",
        f"off by {percent['mre_s0']} (mean relative error; the measurement itself is only good to "
        f"{percent['mre_noise_floor']})",
    )
    table.add_row("", f"noise taken out: {percent['mre_s0_corrected']}")
    table.add_row(
        "naive guesses, noise taken out",
        f"training mean {percent['mre_naive_mean_corrected']}, "
        f"linear in prompt length {percent['mre_naive_linear_corrected']}",
    )
    table.add_row(
        "value inside responses",
        f"R2 {summary['r2_monte_carlo']:.3f} against {STATES} Monte Carlo values "
        f"(raw, with sampling noise: {summary['r2_monte_carlo_raw']:.3f})",
    )
    table.add_row(
        "shorter by guidance",
        f"keeps {100 * summary['guided_kept']:.0f} % of the accuracy at "
        f"{summary['guided_length']:.0f} tokens, where a hard budget keeps half",
    )
    table.add_row(
        "trained on",
        f"{summary['completions']:,} completions, gamma {summary['gamma']:.5f} "
        f"from their 99th percentile, {100 * summary['share_truncated']:.2f} % truncated",
    )
    setup = "already installed" if summary["setup_s"] is None else f"{summary['setup_s']:.0f} s"
    table.add_row("time", f"set-up {setup}, run {summary['run_s']:.0f} s")
    table.add_row("model", str(lenvm))
    table.add_row("figures", f"{out / 'prediction'}, {out / 'tradeoff'}")
    return table
