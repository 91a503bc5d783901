"""Old names of `lenvm_rl.sampling.transformers.engine`, until nobody uses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.sampling.encoding import encode_prompt, prompt_row
from lenvm_rl.sampling.fill import SamplingReport, fill
from lenvm_rl.sampling.run import EngineFacts, SamplingRun, Task, TokenSampling
from lenvm_rl.sampling.transformers.engine import TransformersEngine, sample_to_file
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler

__all__ = [
    "SamplingReport",
    "Task",
    "encode_prompt",
    "prompt_row",
    "sample_tasks",
    "sample_to_file",
]


def sample_tasks(
    sampler: ContinuousSampler,
    tasks: Sequence[Task],
    out: str | Path,
    *,
    tokenizer_sha: str,
    policy_name: str,
    progress: bool = False,
    **sampling: Any,
) -> SamplingReport:
    """Completions of prompts that are token ids already."""
    facts = EngineFacts(
        policy=policy_name,
        tokenizer_sha=tokenizer_sha,
        vocab_size=sampler.vocab_size,
        eos_ids=sorted(sampler.eos_token_ids),
    )
    engine = TransformersEngine(sampler, facts)
    run = SamplingRun.of(engine, tasks, TokenSampling(**sampling))
    return fill(run, out, engine, progress=progress)
