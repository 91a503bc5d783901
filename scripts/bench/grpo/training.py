"""GRPO on the shipped policy, in one process: settings, prompts with their grading, the loop.

The loop is plain so that a hundred runs fit on two cores; the advantages are the library's own
(`lenvm_rl.core`), and `lenvm_rl.verl` is the trainer for everything larger.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.core import discounted_returns, masked_mean
from lenvm_rl.demo import lenvm_path, policy_path, task
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.model import LengthValueModel, load_tokenizer
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts.atomic import write_json
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.sampling.transformers.sampler import Completion, ContinuousSampler, Request
from recipes.demo_policy.evaluate_policy import most_said
from scripts.bench.grpo.batches import Grid, length_values, policy_gradient, value_loss
from scripts.bench.grpo.methods import Graded
from scripts.bench.harness import settings as settings_of
from scripts.bench.pool import fingerprint

EVAL_SEED = 90_001  # problems that no run trains on
References = dict[str, dict[str, float]]
"""Per training prompt: what published rewards ask of the data, measured before training."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all runs share."""

    lenvm: Path = field(default_factory=lenvm_path)
    """Directory of the length value model, frozen; the shipped policy's by default."""
    updates: int = 24
    """Updates per run."""
    prompts: int = 16
    """Prompts per update."""
    samples: int = 8
    """Completions per prompt."""
    pool: int = 256
    """Different training prompts, seen in epochs."""
    max_tokens: int = 512
    """Longest response."""
    learning_rate: float = 1e-4
    """Of the policy."""
    lam: float = 0.95
    """Lambda of the dense advantages."""
    refresh_rate: float = 5e-4
    """Learning rate of a LenVM that is refreshed."""
    eval_prompts: int = 128
    """Held-out problems."""
    eval_samples: int = 8
    """Completions of each."""

    def __post_init__(self) -> None:
        if not self.lenvm.is_dir():
            raise ValueError(f"--lenvm {self.lenvm} is no directory: make one with `lenvm demo`.")

    def folder(self, root: Path) -> Path:
        """Where the runs of these settings lie, which are written there."""
        folder = root / self.fingerprint()
        write_json(folder / "settings.json", settings_of(self))
        return folder

    def fingerprint(self, only: Collection[str] | None = None) -> str:
        """Names the settings (or `only` some) and the value model's weights, not where it lies:
        other ones are other runs."""
        sizes = {k: v for k, v in settings_of(self).items() if only is None or k in only}
        sizes.pop("lenvm", None)
        return fingerprint(sizes, sorted(self.lenvm.glob("*.safetensors")))


def policy_of(path: str | Path | None = None) -> Any:
    """A policy to train, the shipped one by default."""
    return ContinuousSampler.from_pretrained(str(path or policy_path())).model


def lenvm_of(path: str | Path) -> LengthValueModel:
    """A length value model, in evaluation mode."""
    return LengthValueModel.from_pretrained(path).eval()


def train(
    world: World,
    seed: int,
    advantage: Callable[[Graded], torch.Tensor],
    *,
    policy: Any,
    lenvm: LengthValueModel,
    refreshes: bool,
    measure: Callable[[Graded], dict[str, float]] | None = None,
) -> tuple[Any, list[dict[str, float]]]:
    """The policy, trained, and what every update saw.

    Args:
        world: prompts and grading.
        seed: of the order of prompts and of every sample.
        advantage: [B, T] of a graded batch.
        policy: where it starts; it is changed in place.
        lenvm: the length value model.
        refreshes: train it on every batch too, in place.
        measure: figures of a graded batch beside the usual ones.
    """
    settings = world.settings
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    refresher = torch.optim.AdamW(lenvm.parameters(), lr=settings.refresh_rate, betas=(0.9, 0.95))
    history = []
    for update, prompts in enumerate(world.batches(seed)):
        completions = world.sample(policy, prompts, settings.samples, seed=_stream(seed, update))
        grid, batch = world.grade(lenvm, prompts, completions)
        a = advantage(batch)
        history.append({**_measure(batch), **(measure(batch) if measure else {})})
        policy_gradient(policy, grid, a)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if refreshes:
            value_loss(lenvm, grid)
            torch.nn.utils.clip_grad_norm_(lenvm.parameters(), 1.0)
            refresher.step()
            refresher.zero_grad(set_to_none=True)
    return policy, history


class World:
    """Prompts, tokenizer and grading of the shipped policy's task.

    Args:
        settings: sizes.
        columns: per training prompt, what rewards ask of the data.
        prompts: training prompts and held-out ones; the bench's own by default.
    """

    def __init__(
        self,
        settings: Settings,
        columns: References | None = None,
        prompts: tuple[list[Prompt], list[Prompt]] | None = None,
    ):
        self.settings, self.columns = settings, columns or {}
        self.tokenizer = load_tokenizer(policy_path())
        self.pool, self.held = prompts or plain_prompts(settings)
        self._ids = {p.prompt_id: encode_prompt(self.tokenizer, p) for p in self.pool + self.held}

    def batches(self, seed: int):
        """Prompts of every update: the pool in epochs, shuffled by the seed."""
        rng, order = random.Random(f"order-{seed}"), []
        for _ in range(self.settings.updates):
            if len(order) < self.settings.prompts:
                order += rng.sample(self.pool, len(self.pool))
            batch, order = order[: self.settings.prompts], order[self.settings.prompts :]
            yield batch

    def sample(
        self,
        policy: Any,
        prompts: Sequence[Prompt],
        samples: int,
        *,
        seed: int,
        temperature: float = 1.0,
    ) -> list[Completion]:
        """`samples` completions of every prompt, prompt by prompt; temperature 0 is greedy."""
        sampler = ContinuousSampler(policy, eos_token_ids=[self.tokenizer.eos_token_id])
        requests = [
            Request(
                self._ids[p.prompt_id],
                self.settings.max_tokens,
                temperature=temperature,
                seed=seed + k,
            )
            for k, p in enumerate(p for p in prompts for _ in range(samples))
        ]
        return sampler.generate(requests)

    def grade(
        self, lenvm: LengthValueModel, prompts: Sequence[Prompt], completions: list[Completion]
    ) -> tuple[Grid, Graded]:
        """Lay out and grade the completions of a batch, `len / len(prompts)` per prompt."""
        n = len(completions) // len(prompts)
        owners = [p for p in prompts for _ in range(n)]
        grid = Grid.of([self._ids[p.prompt_id] for p in owners], completions)
        values, lengths_left = length_values(lenvm, grid)
        return grid, Graded(
            correct=[float(self.right(p, c)) for p, c in zip(owners, completions, strict=True)],
            lengths=[len(c.token_ids) for c in completions],
            prompt_ids=[p.prompt_id for p in owners],
            mask=grid.states,
            finished=grid.finished,
            values=values,
            lengths_left=lengths_left,
            gamma=lenvm.config.require_gamma(),
            answers=lenvm.config.answers,
            columns={p.prompt_id: self.columns.get(p.prompt_id, {}) for p in prompts},
        )

    def evaluate(self, policy: Any, *, temperature: float = 1.0) -> dict[str, float]:
        """Accuracy and length on problems that were not trained on, on hard ones too."""
        samples = self.settings.eval_samples if temperature else 1
        completions = self.sample(
            policy, self.held, samples, seed=EVAL_SEED, temperature=temperature
        )
        owners = [p for p in self.held for _ in range(samples)]
        right = [self.right(p, c) for p, c in zip(owners, completions, strict=True)]
        tokens = [len(c.token_ids) for c in completions]
        ordered = sorted(tokens)
        hard = [i for i, p in enumerate(owners) if p.data_source.endswith("/hard")]
        return {
            "accuracy": sum(right) / len(right),
            "length": sum(tokens) / len(tokens),
            "length_p95": ordered[int(0.95 * len(ordered))],
            "tokens_per_correct": sum(tokens) / sum(right) if any(right) else math.inf,
            "share_truncated": sum(c.finish_reason != "stop" for c in completions)
            / len(completions),
            "hard_accuracy": statistics.fmean(right[i] for i in hard) if hard else None,
            "hard_length": statistics.fmean(tokens[i] for i in hard) if hard else None,
        }

    def majority(self, policy: Any, *, votes: int) -> dict[str, float]:
        """Accuracy of the most frequent answer of `votes` samples at temperature 1, and what one
        such answer costs in tokens."""
        completions = self.sample(policy, self.held, votes, seed=EVAL_SEED)
        texts = [self._text(completion) for completion in completions]
        said = [most_said(texts[i : i + votes]) for i in range(0, len(texts), votes)]
        return {
            "accuracy": statistics.fmean(
                answer == prompt.ground_truth
                for answer, prompt in zip(said, self.held, strict=True)
            ),
            "length": sum(len(c.token_ids) for c in completions) / len(self.held),
        }

    def references(self, policy: Any) -> References:
        """Mean length and accuracy of the untrained policy on every training prompt."""
        samples = 4
        completions = self.sample(policy, self.pool, samples, seed=1)
        out = {}
        for i, prompt in enumerate(self.pool):
            mine = completions[i * samples : (i + 1) * samples]
            out[prompt.prompt_id] = {
                "reference_tokens": sum(len(c.token_ids) for c in mine) / samples,
                "reference_accuracy": sum(self.right(prompt, c) for c in mine) / samples,
            }
        return out

    def right(self, prompt: Prompt, completion: Completion) -> bool:
        """Whether a completion ends in the prompt's answer."""
        return task.grade(self._text(completion), prompt.ground_truth or "")

    def _text(self, completion: Completion) -> str:
        return self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)


def plain_prompts(settings: Settings) -> tuple[list[Prompt], list[Prompt]]:
    """Training problems, and others that no run trains on."""
    pool = demo_prompts(settings.pool, seed=17)
    seen = {str(prompt.messages) for prompt in pool}
    fresh = demo_prompts(2 * settings.eval_prompts, seed=EVAL_SEED)
    return pool, [p for p in fresh if str(p.messages) not in seen][: settings.eval_prompts]


def _stream(seed: int, update: int) -> int:
    return 1_000_000 * (seed + 1) + 10_000 * update


def _measure(batch: Graded) -> dict[str, float]:
    """What one update saw: task, length, and how stale the values are on fresh rollouts."""
    ended = batch.mask & batch.finished[:, None]
    return {
        "accuracy": sum(batch.correct) / len(batch.correct),
        "length": sum(batch.lengths) / len(batch.lengths),
        **_reference(batch),
        "share_truncated": 1.0 - batch.finished.float().mean().item(),
        **_drift(batch, ended),
    }


def _reference(batch: Graded) -> dict[str, float]:
    """What the untrained policy needs for these prompts, where that is known: batches differ."""
    known = [batch.columns[p].get("reference_tokens") for p in batch.prompt_ids]
    return {} if None in known else {"reference_length": sum(known) / len(known)}


def _drift(batch: Graded, ended: torch.Tensor) -> dict[str, float]:
    """RMSE and bias of the horizon against what the completions turned out to be."""
    error = batch.values - discounted_returns(batch.mask, gamma=batch.gamma)
    tokens = float(ended.sum()) or 1.0
    return {
        "value_rmse": masked_mean(error.square(), ended, denom=tokens).sqrt().item(),
        "value_bias": -masked_mean(error, ended, denom=tokens).item(),
    }
