"""How do plain prompts and completions in JSON lines become a rollout file?

Accepted objects (extra keys are ignored):

    {"prompt": <text or messages>, "completion": <text or messages>, "finish_reason": "stop"}
    {"prompt": <text or messages>, "completions": [<text>, ...], "finish_reasons": ["stop", ...]}

`messages` are `[{"role": ..., "content": ...}, ...]`; a completion given as messages has one, of
the assistant; its `reasoning_content` (or `reasoning`, also beside a text completion) is put back
in front of the content, as the policy writes it. Optional keys: `prompt_id` (default: a digest of
the prompt's tokens), `system` (put before a text prompt), `data_source`, `ground_truth`, the finish
reasons, `reward` or `score` (`rewards`, a list, of several completions), `grader`, `session_id`,
`turn`, and the source's own count of the completion's tokens (`answer_token_length`,
`completion_tokens` or `usage.completion_tokens`), which is compared. Other names are brought in
with `rename`, e.g. `{"gt": "ground_truth"}`.

Without a finish reason, a completion ended by itself if its text holds the end token, and was cut
if it has `max_tokens` tokens or more; without such a limit it is a bad row, unless the caller says
that all are finished. The report's notes say how many were inferred so.
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
    assume_finished: bool = False,
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
        assume_finished: completions without a finish reason had no token limit.
        errors: `raise` at the first bad row, or `report` and go on; see `Endings.keep_unknown`.
        max_examples: bad rows quoted in the report.
        progress: show a bar.
    """
    endings = Endings(
        max_tokens=(sampling or {}).get("max_tokens"),
        assume_finished=assume_finished,
        keep_unknown=errors == "report",
    )
    samples: Counter[str] = Counter()

    def parse(row: dict[str, Any], notes: Counter[str]) -> Iterator[Rollout | BadRow]:
        row = {(rename or {}).get(key, key): value for key, value in row.items()}
        prompt = _prompt(row, chat)
        prompt_ids = codec.prompt(prompt)
        given = row.get("prompt_id")
        prompt_id = prompt_name(prompt_ids) if given is None else str(given)
        truth = row.get("ground_truth")
        messages = None if isinstance(prompt, str) else list(map(_role_and_content, prompt))
        for completion, said, reward in _completions(row):
            sample_id = samples[prompt_id]
            samples[prompt_id] += 1
            try:
                ids, reason = read_response(
                    with_reasoning(codec, _assistant(completion, row)),
                    said,
                    endings=endings,
                    codec=codec,
                    prompt_ids=prompt_ids,
                    notes=notes,
                    tokens=_said_tokens(row),
                )
            except Exception as error:  # the prompt's other completions are not concerned
                yield BadRow.of(error)
                continue
            yield Rollout(
                prompt_id=prompt_id,
                sample_id=sample_id,
                prompt_ids=prompt_ids,
                response_ids=ids,
                finish_reason=reason,
                prompt_messages=messages,
                data_source=str(row.get("data_source") or data_source),
                ground_truth=truth_text(truth),
                sampling=dict(sampling or {}),
                policy=dict(policy or {}),
                **said_of({**row, "reward": reward, "score": None}, notes),
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


def _prompt(row: dict[str, Any], chat: bool) -> str | list[dict[str, Any]]:
    prompt = require(row, "prompt", (str, list))
    if isinstance(prompt, list):
        for message in prompt:
            _role_and_content(message)
        return prompt  # with all that the template may want to see
    if not chat:
        return prompt
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return [*system, {"role": "user", "content": prompt}]


def _role_and_content(message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or not all(
        isinstance(message.get(key), str) for key in ("role", "content")
    ):
        raise BadRow("bad_message", f"message {message!r:.80} needs 'role' and 'content' strings.")
    return {"role": message["role"], "content": message["content"]}


def _completions(row: dict[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
    """(completion, finish reason or None, reward or None) of each completion in the object."""
    if ("completion" in row) == ("completions" in row):
        raise BadRow(
            "no_completion", "the object needs 'completion' or 'completions', one of the two."
        )
    if "completion" in row:
        reward = row["reward"] if row.get("reward") is not None else row.get("score")
        yield row["completion"], row.get("finish_reason"), reward
        return
    texts = require(row, "completions", list)
    reasons = row.get("finish_reasons")
    if reasons is None:
        reasons = [row.get("finish_reason")] * len(texts)
    if not isinstance(reasons, list) or len(reasons) != len(texts):
        raise BadRow(
            "bad_finish_reasons", f"{len(texts)} completions but finish_reasons {reasons!r:.80}."
        )
    rewards = row.get("rewards")
    if rewards is None:  # one beside several completions would be nobody's
        rewards = [None] * len(texts)
    if not isinstance(rewards, list) or len(rewards) != len(texts):
        raise BadRow("bad_rewards", f"{len(texts)} completions but rewards {rewards!r:.80}.")
    if not texts:
        raise BadRow("no_completion", "'completions' is an empty list.")
    yield from zip(texts, reasons, rewards, strict=True)


def _assistant(completion: Any, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A completion as the assistant's message."""
    if isinstance(completion, list) and len(completion) == 1:
        completion = completion[0]
    if isinstance(completion, str):
        beside = {key: row.get(key) for key in ("reasoning_content", "reasoning", "tool_calls")}
        if any(beside.values()) and "completions" in row:
            raise BadRow(
                "bad_reasoning", "reasoning beside several completions: whose is it? Give messages."
            )
        return {"content": completion, **beside}
    if not isinstance(completion, dict) or not isinstance(completion.get("content", 0), str | None):
        raise BadRow(
            "wrong_type",
            f"a completion is {completion!r:.60}, expected text or one assistant message.",
        )
    return completion


def _said_tokens(row: Mapping[str, Any]) -> int | None:
    """The source's count of the completion's tokens, where it has one completion and says it."""
    usage = row.get("usage")
    counts = (
        row.get("answer_token_length"),
        row.get("completion_tokens"),
        usage.get("completion_tokens") if isinstance(usage, dict) else None,
    )
    known = [count for count in counts if isinstance(count, int) and count > 0]
    return known[0] if known and "completion" in row else None
