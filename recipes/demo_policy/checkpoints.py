"""Files of a demo training run: the policy's directory and the resumable states beside it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.demo_policy.batches import TrainConfig


def save_policy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the directory that transformers and vLLM load, by a rename of each file."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as staging:
        # Plain sampling from the policy's own distribution unless the caller says otherwise.
        model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=560,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for file in Path(staging).iterdir():
            os.replace(file, out / file.name)


def save_state(
    path: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
) -> None:
    """Write what resuming needs: weights, optimiser and the number of finished steps."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "config": asdict(config),
    }
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load_state(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> int:
    """Load `save_state`'s file and return the number of finished steps.

    Raises:
        ValueError: the file was written under other settings (the number of steps may differ as
            long as the learning rate has not begun to fall under either).
    """
    state = torch.load(path, weights_only=True)
    before = TrainConfig(**state["config"])
    done = state["step"]
    if replace(before, steps=config.steps) != config:
        raise ValueError(f"{path} was trained with {before}, not with {config}; use the same")
    for steps in {before.steps, config.steps} if before != config else ():
        first_decayed = steps - round(steps * config.decay_share)
        if done > first_decayed:
            raise ValueError(
                f"{path} holds {done} steps, but with {steps} steps the learning rate falls from "
                f"step {first_decayed}; resume an earlier state or keep the number of steps"
            )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return done
