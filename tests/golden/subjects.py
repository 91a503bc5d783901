"""What is held fast: small runs on the shipped policy and its LenVM, and one step of advantages."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lenvm_rl.demo import lenvm_path, policy_path
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.evals.length_control import evaluate as length_control
from lenvm_rl.evals.prediction import evaluate as prediction_of
from lenvm_rl.evals.tradeoff import evaluate as tradeoff_of
from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutStream, RolloutWriter
from lenvm_rl.sampling.predict import predict_prompts
from lenvm_rl.sampling.transformers.engine import sample_to_file
from reward_fns.graders import get_grader
from scripts.bench.grpo.methods import ALL, Graded, advantages, all_methods

ROLLOUTS = Path(__file__).with_name("rollouts.json")
ROWS = ("prompt_id", "sample_id", "prompt_ids", "response_ids", "finish_reason", "ground_truth")


def first_forward() -> str:
    """Digest of the shipped policy's logits: equal where a processor rounds alike."""
    policy = AutoModelForCausalLM.from_pretrained(policy_path()).eval()
    with torch.no_grad():
        logits = policy(torch.arange(96).reshape(4, 24) % policy.config.vocab_size).logits
    return sha256(logits.contiguous().numpy().tobytes()).hexdigest()


def sample(out: Path) -> list[dict[str, Any]]:
    """6 problems x 4 completions by transformers, sampled as `lenvm sample` does."""
    sample_to_file(policy_path(), demo_prompts(6, seed=3), out, n=4, max_tokens=256, seed=11)
    rows = sorted(RolloutReader(out).iter_rows(), key=lambda row: (row.prompt_id, row.sample_id))
    return [{name: _plain(getattr(row, name)) for name in ROWS} for row in rows]


def _plain(cell: Any) -> Any:
    return cell if isinstance(cell, (str, int)) or cell is None else list(map(int, cell))


def write_rollouts(out: Path, rows: list[dict[str, Any]]) -> Path:
    """The stored completions as a rollout file."""
    sha = tokenizer_sha(load_tokenizer(policy_path()))
    with RolloutWriter(out, tokenizer_sha=sha) as writer:
        writer.append([Rollout(**row, sampling={"max_tokens": 256}) for row in rows])
    return out


def prediction(rollouts: Path, out: Path) -> dict[str, Any]:
    result = prediction_of.run(lenvm_path(), rollouts, out, train=rollouts, any_policy=True)
    return {"figures": result.to_dict(), "prompts": list(result.tables["prompts"])}


def prediction_of_states(rollouts: Path, out: Path) -> dict[str, Any]:
    """The figures that Monte Carlo continuations add."""
    settings = prediction_of.Settings(states=6, continuations=4)
    common = {"settings": settings, "batch_size": 32, "any_policy": True}
    result = prediction_of.run(lenvm_path(), rollouts, out, policy=policy_path(), **common)
    without = prediction_of.run(lenvm_path(), rollouts, out / "without", any_policy=True).figures
    return {name: x for name, x in result.to_dict().items() if name not in without}


def predictions() -> list[dict[str, Any]]:
    """`lenvm predict` on two prompts."""
    return list(predict_prompts(lenvm_path(), demo_prompts(2, seed=5)))


def control(out: Path) -> dict[str, Any]:
    """Targets that the prompts can reach."""
    result = length_control.run(
        policy_path(),
        demo_prompts(3, seed=7),
        out,
        lenvm=lenvm_path(),
        grader=get_grader("demo"),
        settings=length_control.Settings(
            quantiles=(0.3, 0.7),
            methods=("unguided", "truncated", "guided"),
            n=1,
            unguided_n=4,
            max_tokens=160,
        ),
    )
    return {"figures": result.to_dict(), "summary": result.tables["summary"]}


def lifebench(out: Path) -> dict[str, Any]:
    """Given targets."""
    result = length_control.run(
        policy_path(),
        demo_prompts(2, seed=8),
        out,
        lenvm=lenvm_path(),
        grader=None,
        settings=length_control.Settings(
            targets=(40, 90),
            methods=("unguided", "guided", "truncated", "countdown"),
            max_tokens=160,
        ),
    )
    return {"figures": result.to_dict(), "summary": result.tables["summary"]}


def tradeoff(out: Path) -> dict[str, Any]:
    result = tradeoff_of.run(
        policy_path(),
        demo_prompts(4, seed=9),
        out,
        lenvm=lenvm_path(),
        grader=get_grader("demo"),
        settings=tradeoff_of.Settings(betas=(-25.0, -6.0), n=2, max_tokens=160),
    )
    return {"figures": result.to_dict(), "guided": result.tables["guided"]}


def stream_order(folder: Path) -> list[str]:
    """The first 20 rows of a shuffled stream of 90 short rows in groups, and 20 by prompt."""
    with RolloutWriter(folder, tokenizer_sha="golden", rows_per_shard=16) as writer:
        for p in range(30):
            writer.append(
                [
                    Rollout(
                        prompt_id=f"p{p}",
                        sample_id=s,
                        prompt_ids=[p, 2],
                        response_ids=[3] * (1 + (7 * p + s) % 11),
                        finish_reason="stop",
                    )
                    for s in range(3)
                ]
            )
    rows = [
        *RolloutStream(folder, seed=5, epoch=1, window_rows=40).batch(20),
        *RolloutStream(folder, seed=6, window_rows=60, grouped=True).batch(20),
    ]
    return [f"{row.prompt_id}/{row.sample_id}" for row in rows]


def _numbers(*shape: int, step: int) -> Tensor:
    """Numbers in [-2, 2) that are the same everywhere."""
    count = torch.tensor(shape).prod()
    return ((torch.arange(count) * step) % 1009).float().reshape(shape) / 252.25 - 2.0


def bench_advantages() -> dict[str, list[float]]:
    """Every method of the bench, in its strong form, on 4 prompts x 4 completions."""
    lengths = [3 + (11 * i * i + 5 * i) % 30 for i in range(16)]
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    logits = _numbers(16, max(lengths), step=617)
    found = {}
    for answers in ("all", "correct"):
        batch = Graded(
            correct=[float(i % 3 != 1) for i in range(16)],
            lengths=lengths,
            prompt_ids=[f"p{i // 4}" for i in range(16)],
            mask=mask,
            finished=torch.tensor([i % 7 != 3 for i in range(16)]),
            values=-torch.sigmoid(logits) * mask,
            lengths_left=torch.log1p(logits.exp()) * 50 * mask,
            gamma=0.98,
            answers=answers,
            columns={f"p{i}": {"target_length": 20, "reference_length": 20} for i in range(4)},
        )
        for method in all_methods([ALL], [2]):
            got = advantages(method, batch, method.bind(), lam=0.9)
            found[f"{answers} {method.name}"] = summed(got)
    return found


def summed(advantages: Tensor) -> list[float]:
    """[B] sums over a row's tokens, each times the number of its position."""
    rows = advantages.double()
    return (rows * torch.arange(1.0, rows.shape[1] + 1, dtype=torch.float64)).sum(1).tolist()
