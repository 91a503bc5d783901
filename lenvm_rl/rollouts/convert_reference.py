"""How does the reference implementation's JSONL become a rollout file?

One line of it (its data generator, and the data sets published with LenVM):

    {"conversations": [{"from": "system|human|gpt", "value": "..."}, ...],
     "meta_info": {"answer_token_length": 512, "lenvm_idx": 7, "dataset_name": "...",
                   "model_name": "...", "temperature": 1.0, "top_p": 1.0, "top_k": null,
                   "max_tokens": 16000, ...},
     "source_fields": {...}}

It has no token ids and no finish_reason. Text is tokenised again, and a completion counts as cut
when `answer_token_length >= max_tokens`: one that ended exactly at the limit is taken for cut too.
The report's notes say how many reasons were inferred, how many came out as cut, and for how many
rows the new token count differs from `answer_token_length` (which counts EOS); a row where the two
are more than a few per cent apart is a bad row: part of what was generated is not in it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from lenvm_rl.rollouts.convert import (
    BadRow,
    ConversionReport,
    Endings,
    convert_lines,
    find_sources,
    read_response,
    require,
    said_of,
)
from lenvm_rl.rollouts.record import Rollout
from lenvm_rl.rollouts.text import TextCodec, with_reasoning
from lenvm_rl.rollouts.truth import truth_text

_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def convert_reference(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    codec: TextCodec,
    max_tokens: int | None = None,
    assume_finished: bool = False,
    errors: str = "raise",
    max_examples: int = 10,
    progress: bool = False,
) -> ConversionReport:
    """Convert the reference's `conversations` / `meta_info` JSONL.

    Args:
        path: file, files or directory of `.jsonl` / `.jsonl.gz`.
        out: rollout directory or `.parquet` file to make.
        codec: the tokenizer of the policy named in the data, with its chat template.
        max_tokens: token limit of rows whose meta_info has none.
        assume_finished: such rows had no limit.
        errors: `raise` at the first bad row, or `report` and go on.
        max_examples: bad rows quoted in the report.
        progress: show a bar.
    """
    samples: Counter[str] = Counter()
    endings = Endings(max_tokens=max_tokens, assume_finished=assume_finished)

    def parse(row: dict[str, Any], notes: Counter[str]) -> Iterator[Rollout]:
        messages, answer = _conversation(row)
        meta = require(row, "meta_info", dict)
        expected = require(meta, "answer_token_length", int)
        limit = max_tokens if meta.get("max_tokens") is None else require(meta, "max_tokens", int)
        reason = None
        if limit is not None:
            reason = "length" if expected >= limit else "stop"
            notes["finish_reason inferred from answer_token_length and max_tokens"] += 1
            notes["finish_reason inferred as cut"] += reason == "length"
        prompt_ids = codec.prompt(messages)
        response_ids, reason = read_response(
            with_reasoning(codec, answer),
            reason,
            endings=endings,
            codec=codec,
            prompt_ids=prompt_ids,
            notes=notes,
            tokens=expected,
        )
        source = str(meta.get("dataset_name") or "unknown")
        prompt_id = f"{source}/{_index(meta)}"
        rollout = Rollout(
            prompt_id=prompt_id,
            sample_id=samples[prompt_id],
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            finish_reason=reason,
            prompt_messages=messages,
            data_source=source,
            ground_truth=truth_text((row.get("source_fields") or {}).get("final_answer")),
            sampling={
                key: meta.get(key) for key in ("temperature", "top_p", "top_k", "max_tokens")
            },
            policy={"name": meta.get("model_name")},
            **said_of(meta, notes),
        )
        samples[prompt_id] += 1
        notes["a token count unlike answer_token_length"] += len(response_ids) != expected
        yield rollout

    return convert_lines(
        find_sources(path),
        out,
        parse,
        codec=codec,
        errors=errors,
        max_examples=max_examples,
        progress=progress,
    )


def _conversation(row: dict[str, Any]) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Prompt messages and the assistant's, which may hold reasoning beside its content."""
    if row.get("images"):
        raise BadRow("multimodal", "the prompt has images, which text ids cannot stand for.")
    turns = require(row, "conversations", list)
    messages = []
    for turn in turns:
        role = _ROLES.get(turn.get("from")) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise BadRow(
                "bad_turn",
                f"turn {turn!r:.80} needs 'from' in {list(_ROLES)} and a string as 'value'.",
            )
        messages.append({"role": role, "content": turn["value"]})
    roles = [message["role"] for message in messages]
    if not roles or roles[-1] != "assistant" or "user" not in roles[:-1]:
        raise BadRow(
            "bad_roles", f"turns are {roles}; expected a user's, and last the assistant's."
        )
    return messages[:-1], {**turns[-1], **messages[-1]}


def _index(meta: dict[str, Any]) -> Any:
    # `index` is the key of the reference's older files.
    for key in ("lenvm_idx", "index"):
        if meta.get(key) is not None:
            return meta[key]
    raise BadRow("missing_key", "meta_info has no lenvm_idx, so the prompt is not known.")
