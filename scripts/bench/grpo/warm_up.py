"""The start of all budget methods: a policy that learns to read budgets from its own completions.

The shipped policy reads `about 120 tokens: 3 + 4 = ?` and does not heed it. So it is trained for a
moment on its own right answers to plain problems, each asked again with the budget that it happened
to meet. The LenVM sees the same completions. All methods start from the pair that comes out.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.model import LengthValueModel, save_checkpoint
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.sampling.transformers.sampler import Completion
from scripts.bench.grpo.batches import Grid, policy_gradient, value_loss
from scripts.bench.grpo.training import Settings, World, policy_of

ROWS = 64  # completions per update
SAMPLES = 4  # of every problem
SEED = 7


@dataclass(frozen=True)
class Start:
    """Where every method starts from."""

    policy: str
    """Directory of a policy that reads budgets, or tries to."""
    lenvm: str
    """Directory of its LenVM."""


def warm_up(
    settings: Settings, folder: Path, *, problems: int, epochs: int, learning_rate: float
) -> Start:
    """Train both on hindsight budgets, unless `folder` has them already.

    Raises:
        ValueError: fewer right answers than one update takes.
    """
    start = Start(str(folder / "policy"), str(folder / "lenvm"))
    if folder.is_dir():
        return start
    torch.manual_seed(SEED)
    world = World(replace(settings, pool=problems, eval_prompts=1))
    policy = policy_of()
    lenvm = LengthValueModel.from_pretrained(settings.lenvm)
    rows = hindsight(world, world.sample(policy, world.pool, SAMPLES, seed=SEED))
    if len(rows) < ROWS:
        raise ValueError(f"{len(rows)} right answers, fewer than the {ROWS} of one update")
    models = (policy, lenvm)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=learning_rate) for m in models]
    steps = epochs * (len(rows) // ROWS)
    rng, order = random.Random(SEED), []
    for step in range(steps):
        if len(order) < ROWS:
            order = rng.sample(rows, len(rows))
        batch, order = order[:ROWS], order[ROWS:]
        grid = Grid.of([ids for ids, _ in batch], [completion for _, completion in batch])
        policy_gradient(policy, grid, torch.ones(grid.states.shape))  # likelihood: A = 1
        value_loss(lenvm, grid)
        for model, optimizer in zip(models, optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1.0 - step / steps)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    _save(world, policy, lenvm, folder)
    return start


def hindsight(world: World, completions: list[Completion]) -> list[tuple[list[int], Completion]]:
    """Right answers under prompts that ask for the length they have."""
    owners = [prompt for prompt in world.pool for _ in range(SAMPLES)]
    return [
        (encode_prompt(world.tokenizer, asked(prompt, len(completion.token_ids))), completion)
        for prompt, completion in zip(owners, completions, strict=True)
        if world.right(prompt, completion)
    ]


def asked(prompt: Prompt, length: int) -> Prompt:
    """The prompt with a budget of `length` tokens in front."""
    content = f"about {length} tokens: {prompt.messages[0]['content']}"
    return replace(prompt, messages=[{"role": "user", "content": content}])


def _save(world: World, policy: Any, lenvm: LengthValueModel, folder: Path) -> None:
    """Both directories, whole or not at all."""
    staging = folder.with_name(folder.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    policy.save_pretrained(staging / "policy")
    world.tokenizer.save_pretrained(staging / "policy")
    save_checkpoint(lenvm, world.tokenizer, staging / "lenvm")
    staging.rename(folder)
