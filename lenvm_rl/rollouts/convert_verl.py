"""How do verl's rollout dumps become a rollout file?

With `trainer.rollout_data_dir` (or `validation_data_dir`) set, verl 0.9 writes `<step>.jsonl`, one
line per completion, plus whatever the reward function returned:

    {"input": "...", "output": "...", "gts": "42", "score": 1.0, "step": 3, "uid": "..."}

`input` is the rendered prompt and `output` the response, both decoded without special tokens. So
the ids are made again from text, and the prompt's are those of a text without its chat markers:
fit for length statistics and for training on prompts rendered the same way, not a record of what
the policy read. There is no finish reason: a completion of `max_tokens` tokens
(`data.max_response_length`) or more counts as cut, and the limit must be given. The policy's
revision becomes `global_step_<step>`, `score` the reward.

verl's other dumps (`gen_batch.dp`, `tq_batch.pt` of its rollout skip) are pickled tensors; they
hold the ids, and are read with verl itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lenvm_rl.rollouts.convert import (
    ConversionReport,
    Endings,
    convert_lines,
    find_sources,
    read_response,
    require,
    said_of,
)
from lenvm_rl.rollouts.convert_text import prompt_name
from lenvm_rl.rollouts.record import Rollout
from lenvm_rl.rollouts.text import TextCodec
from lenvm_rl.rollouts.truth import truth_text


def convert_verl(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    codec: TextCodec,
    data_source: str = "verl",
    sampling: Mapping[str, Any] | None = None,
    policy_name: str | None = None,
    assume_finished: bool = False,
    errors: str = "raise",
    max_examples: int = 10,
    progress: bool = False,
) -> ConversionReport:
    """Convert a `rollout_data_dir` (or single `<step>.jsonl` files), steps in order.

    Args:
        path: directory or files.
        out: rollout directory or `.parquet` file to make.
        codec: the policy's tokenizer.
        data_source: name to record.
        sampling: settings to record; its `max_tokens` serves to tell cut completions.
        policy_name: name to record; the revision comes from the step.
        assume_finished: there was no token limit.
        errors: `raise` at the first bad row, or `report` and go on.
        max_examples: bad rows quoted in the report.
        progress: show a bar.
    """
    endings = Endings(
        max_tokens=(sampling or {}).get("max_tokens"), assume_finished=assume_finished
    )
    samples: Counter[str] = Counter()

    def parse(row: dict[str, Any], notes: Counter[str]) -> Iterator[Rollout]:
        prompt_ids = codec.prompt(require(row, "input", str))
        text = require(row, "output", str)
        step = require(row, "step", int)
        response_ids, reason = read_response(
            text, None, endings=endings, codec=codec, prompt_ids=prompt_ids, notes=notes
        )
        prompt_id = prompt_name(prompt_ids)
        notes["a prompt without its special tokens"] += 1
        yield Rollout(
            prompt_id=prompt_id,
            sample_id=samples[prompt_id],
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            finish_reason=reason,
            data_source=data_source,
            ground_truth=truth_text(row.get("gts")),
            sampling=dict(sampling or {}),
            policy={"name": policy_name, "revision": f"global_step_{step}"},
            **said_of(row, notes),
        )
        samples[prompt_id] += 1

    return convert_lines(
        find_sources(path),
        out,
        parse,
        codec=codec,
        errors=errors,
        max_examples=max_examples,
        progress=progress,
    )
