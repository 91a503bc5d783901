"""How do plain prompts and completions in JSON lines become a rollout file?

Accepted objects (extra keys are ignored):

    {"prompt": <text or messages>, "completion": <text or messages>, "finish_reason": "stop"}
    {"prompt": <text or messages>, "completions": [<text>, ...], "finish_reasons": ["stop", ...]}

`messages` are `[{"role": ..., "content": ...}, ...]`; a completion given as messages has one, of
the assistant. Optional keys: `prompt_id` (default: a digest of the prompt's tokens), `system` (put
before a text prompt), `data_source`, `ground_truth`, and the finish reasons. Other names are
brought in with `rename`, e.g. `{"gt": "ground_truth"}`.

Without a finish reason, a completion counts as cut when it has `max_tokens` tokens or more, and as
ended by itself otherwise; the report's notes say how many were inferred or assumed so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lenvm_rl.rollouts.columns import content_digest
from lenvm_rl.rollouts.convert import (
    BadRow,
    ConversionReport,
    completion_ids,
    convert_lines,
    find_sources,
    require,
)
from lenvm_rl.rollouts.record import FINISH_REASONS, Rollout
from lenvm_rl.rollouts.text import TextCodec


def convert_text(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    codec: TextCodec,
    chat: bool = True,
    rename: Mapping[str, str] | None = None,
    data_source: str = "unknown",
    sampling: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    errors: str = "raise",
    max_examples: int = 10,
    progress: bool = False,
) -> ConversionReport:
    """Convert JSONL of prompts and completions.

    Args:
        path: file, files or directory of `.jsonl` / `.jsonl.gz`.
        out: rollout directory or `.parquet` file to make.
        codec: the tokenizer of the policy that wrote the completions.
        chat: a text prompt is a user's message for the chat template; False takes it as raw text.
        rename: key in the file -> key above.
        data_source: for objects that have none.
        sampling: settings to record; its `max_tokens` serves to tell cut completions.
        policy: name and revision to record.
        errors: `raise` at the first bad row, or `report` and go on.
        max_examples: bad rows quoted in the report.
        progress: show a bar.
    """
    limit = (sampling or {}).get("max_tokens")
    samples: Counter[str] = Counter()

    def parse(row: dict[str, Any], notes: Counter[str]) -> Iterator[Rollout | BadRow]:
        row = {(rename or {}).get(key, key): value for key, value in row.items()}
        prompt = _prompt(row, chat)
        prompt_ids = codec.prompt(prompt)
        given = row.get("prompt_id")
        prompt_id = prompt_name(prompt_ids) if given is None else str(given)
        truth = row.get("ground_truth")
        for text, reason in _completions(row):
            sample_id = samples[prompt_id]
            samples[prompt_id] += 1
            try:
                text = _completion_text(text)
                reason = finish_reason(reason, text, limit=limit, codec=codec, notes=notes)
                ids = completion_ids(
                    text, cut=reason == "length", codec=codec, prompt_ids=prompt_ids
                )
            except BadRow as bad:
                yield bad
                continue
            yield Rollout(
                prompt_id=prompt_id,
                sample_id=sample_id,
                prompt_ids=prompt_ids,
                response_ids=ids,
                finish_reason=reason,
                prompt_messages=None if isinstance(prompt, str) else prompt,
                data_source=str(row.get("data_source") or data_source),
                ground_truth=None if truth is None else str(truth),
                sampling=dict(sampling or {}),
                policy=dict(policy or {}),
            )

    return convert_lines(
        find_sources(path),
        out,
        parse,
        codec=codec,
        errors=errors,
        max_examples=max_examples,
        progress=progress,
    )


def prompt_name(prompt_ids: Sequence[int]) -> str:
    """A `prompt_id` made of the prompt's content: 16 hexadecimal digits."""
    return f"{content_digest(np.asarray(prompt_ids, dtype=np.int32)):016x}"


def finish_reason(
    given: Any, text: str, *, limit: int | None, codec: TextCodec, notes: Counter[str]
) -> str:
    """The finish reason given, or one inferred from the token limit and noted as such."""
    if given is not None:
        if given not in FINISH_REASONS:
            raise BadRow(
                "unknown_finish_reason", f"finish_reason {given!r} is none of {FINISH_REASONS}."
            )
        return given
    if limit is None:
        notes["finish_reason assumed to be stop (none given, no max_tokens to infer it)"] += 1
        return "stop"
    cut = len(codec.completion(text, finished=False)) >= limit
    notes["finish_reason inferred from max_tokens"] += 1
    notes["finish_reason inferred as cut"] += cut
    return "length" if cut else "stop"


def _prompt(row: dict[str, Any], chat: bool) -> str | list[dict[str, str]]:
    prompt = require(row, "prompt", (str, list))
    if isinstance(prompt, list):
        return [_message(message) for message in prompt]
    if not chat:
        return prompt
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*system, {"role": "user", "content": prompt}]


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or not all(
        isinstance(message.get(key), str) for key in ("role", "content")
    ):
        raise BadRow("bad_message", f"message {message!r:.80} needs 'role' and 'content' strings.")
    return {"role": message["role"], "content": message["content"]}


def _completions(row: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(completion, finish reason or None) of each completion in the object."""
    if ("completion" in row) == ("completions" in row):
        raise BadRow(
            "no_completion", "the object needs 'completion' or 'completions', one of the two."
        )
    if "completion" in row:
        yield row["completion"], row.get("finish_reason")
        return
    texts = require(row, "completions", list)
    reasons = row.get("finish_reasons")
    if reasons is None:
        reasons = [row.get("finish_reason")] * len(texts)
    if not isinstance(reasons, list) or len(reasons) != len(texts):
        raise BadRow(
            "bad_finish_reasons", f"{len(texts)} completions but finish_reasons {reasons!r:.80}."
        )
    if not texts:
        raise BadRow("no_completion", "'completions' is an empty list.")
    yield from zip(texts, reasons, strict=True)


def _completion_text(completion: Any) -> str:
    if isinstance(completion, list) and len(completion) == 1:
        completion = _message(completion[0])["content"]
    if not isinstance(completion, str):
        raise BadRow(
            "wrong_type",
            f"a completion is {completion!r:.60}, expected text or one assistant message.",
        )
    return completion
