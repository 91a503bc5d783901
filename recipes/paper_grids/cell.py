"""One run of a grid: a LenVM trained by the plain loop; its numbers depend on the cell alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.core import TARGETS, check_gamma
from lenvm_rl.model import LengthValueModel, describe_policy, from_scratch, load_tokenizer
from lenvm_rl.model.heldout import heldout_errors
from lenvm_rl.model.training import Recipe, train
from recipes.paper_grids.data import Data, heldout_rows

VERSION = 2
"""Raised whenever the same cell would give other numbers: results of other versions are redone."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run. Every field changes its result, and so its fingerprint."""

    trunk: str
    """Fresh trunk as LAYERSxWIDTH, or the directory or hub name of a causal LM, followed by @K to
    take its first K blocks alone."""
    prompts: int
    samples: int
    """Completions of each prompt."""
    gamma: float
    length_scale: float
    """Tokens per unit of the targets `length` and `normalized_length`."""
    target: str = "return"
    grouped: bool = False
    precision: str = "float32"
    weighting: str = "token_mean"
    steps: int = 600
    batch_rows: int = 16
    learning_rate: float = 3e-3
    evaluations: int = 10
    """Held-out errors are measured so often, evenly over the steps, at the end too."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_gamma(self.gamma)
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}; got {self.target!r}.")
        for name in ("prompts", "samples", "steps", "batch_rows", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")
        if (size := fresh_size(self.trunk)) is not None and (size[1] % 8 or 0 in size):
            raise ValueError(
                f"trunk {self.trunk!r}: write LAYERSxWIDTH with a width that divides by 8, such "
                "as 2x64, or the directory of a model."
            )
        self.recipe()

    def recipe(self) -> Recipe:
        """How the plain loop trains it."""
        return Recipe(
            learning_rate=self.learning_rate,
            steps=self.steps,
            batch_rows=self.batch_rows,
            micro_tokens=2048,  # little padding: the batch is sorted by length first
            weighting=self.weighting,
            grouped=self.grouped,
            precision=self.precision,
            seed=self.seed,
        )

    @property
    def eval_every(self) -> int:
        """Steps between two evaluations."""
        return max(1, self.steps // self.evaluations)


def fingerprint(cell: Cell, data: str) -> str:
    """16 hex digits that name the run: the cell and the data it is trained and judged on.

    Args:
        cell: all its fields count.
        data: fingerprint of the data (`Data.fingerprint`).
    """
    text = json.dumps({"version": VERSION, "data": data, **asdict(cell)}, sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def fresh_size(trunk: str) -> tuple[int, int] | None:
    """(layers, width) of a fresh trunk LAYERSxWIDTH; None when `trunk` names a model."""
    layers, x, width = trunk.partition("x")
    return (int(layers), int(width)) if x and layers.isdigit() and width.isdigit() else None


def build(cell: Cell, tokenizer_path: str | Path, *, max_positions: int) -> LengthValueModel:
    """The untrained LenVM of a cell, fixed by its seed.

    Args:
        tokenizer_path: the policy, whose vocabulary a fresh trunk gets.
        max_positions: longest prompt plus response of the data.
    """
    torch.manual_seed(cell.seed)
    fields: dict[str, Any] = {
        "gamma": cell.gamma,
        "target": cell.target,
        "length_scale": cell.length_scale,
    }
    tokenizer = load_tokenizer(tokenizer_path)
    size = fresh_size(cell.trunk)
    if size is None:
        name, blocks = _first_blocks(cell.trunk)
        policy = describe_policy(str(tokenizer_path), tokenizer)
        model = LengthValueModel.from_policy(name, policy=policy, **fields)
        return model if blocks is None else _shortened(model, blocks)
    layers, width = size
    return from_scratch(
        tokenizer,
        hidden_size=width,
        num_layers=layers,
        num_heads=max(1, width // 32),
        max_positions=max_positions,
        policy_name=str(tokenizer_path),
        **fields,
    )


def _first_blocks(trunk: str) -> tuple[str, int | None]:
    """(model, K) of MODEL@K, else (trunk, None)."""
    model, at, blocks = trunk.rpartition("@")
    return (model, int(blocks)) if at and blocks.isdigit() else (trunk, None)


def _shortened(model: LengthValueModel, blocks: int) -> LengthValueModel:
    """The model without all but its first blocks."""
    trunk, config = model.model, model.config.text_config
    if not 1 <= blocks <= len(trunk.layers):
        raise ValueError(
            f"the trunk has {len(trunk.layers)} blocks, its first {blocks} were asked for."
        )
    trunk.layers = trunk.layers[:blocks]
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    return model


def run_cell(cell: Cell, data: Data) -> dict[str, Any]:
    """Train with the plain loop and judge: the cell, its held-out curve, facts about training."""
    model = build(cell, data.tokenizer, max_positions=data.longest_sequence)
    rows = heldout_rows(data.heldout, samples=data.heldout_samples)
    curve: list[dict[str, Any]] = []

    def judge(step: int) -> None:
        if step == cell.steps or step % cell.eval_every == 0:
            curve.append({"step": step, **heldout_errors(model, rows)})

    facts = train(
        model,
        data.subset(cell.prompts, cell.samples),
        cell.recipe(),
        label=cell.trunk,
        after_step=judge,
        progress=False,
    )
    return {
        "fingerprint": fingerprint(cell, data.fingerprint),
        "cell": asdict(cell),
        "parameters": facts["parameters"],
        "epochs": facts["epochs"],
        "seconds": facts["seconds"],
        "tokens_per_s": facts["tokens_per_s"],
        "curve": curve,
        "final": curve[-1],
        "least_mse": min(point["mse"] for point in curve),
    }
