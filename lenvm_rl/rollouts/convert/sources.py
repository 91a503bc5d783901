"""Plain JSON lines, the reference's and verl's dumps: what one object of each holds.

Text without token ids is tokenised again, and the report's notes say what was inferred. Of every
object `reward` (or `score`), `grader`, `session_id` and `turn` are taken over where they stand.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from lenvm_rl.rollouts.convert.lines import (
    BadRow,
    ConversionReport,
    Found,
    convert_lines,
    require,
)
from lenvm_rl.rollouts.record import truth_text
from lenvm_rl.rollouts.text import TextCodec

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def convert_text(
    path: Paths,
    out: str | os.PathLike[str],
    *,
    codec: TextCodec,
    chat: bool = True,
    rename: Mapping[str, str] | None = None,
    data_source: str = "unknown",
    sampling: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    errors: str = "raise",
    **loop: Any,
) -> ConversionReport:
    """Convert JSONL of prompts and completions (extra keys are ignored):

        {"prompt": <text or messages>, "completion": <text or messages>, "finish_reason": "stop"}
        {"prompt": <text or messages>, "completions": [<text>, ...], "finish_reasons": ["stop"]}

    `messages` are `[{"role": ..., "content": ...}, ...]`; a completion given as messages has one,
    of the assistant; its `reasoning_content` (or `reasoning`, also beside a text completion) is put
    back in front of the content, as the policy writes it. Optional keys: `prompt_id` (default: a
    digest of the prompt's tokens), `system` (put before a text prompt), `data_source`,
    `ground_truth`, the finish reasons, `rewards` (a list, of several completions), and the source's
    own count of the completion's tokens (`answer_token_length`, `completion_tokens` or
    `usage.completion_tokens`), which is compared.

    Without a finish reason, a completion ended by itself if its text holds the end token, and was
    truncated if it has `max_tokens` tokens or more; without such a limit it is a bad row, unless
    the caller says that all are finished, and with errors="report" is kept as truncated.

    Args:
        path, out, codec, errors, loop: see `convert_lines`.
        chat: a text prompt is a user's message for the chat template; False takes it as raw text.
        rename: key in the file -> key above, e.g. `{"gt": "ground_truth"}`.
        data_source: for objects that have none.
        sampling: settings to record; its `max_tokens` serves to tell truncated completions.
        policy: name and revision to record.
    """

    def parse(row: dict[str, Any], notes: Counter[str]) -> Iterator[Found]:
        row = {(rename or {}).get(key, key): value for key, value in row.items()}
        prompt = _prompt(row, chat)
        given = row.get("prompt_id")
        for completion, reason, reward in _completions(row):
            yield Found(
                prompt=prompt,
                answer=partial(_assistant, completion, row),
                reason=reason,
                tokens=_said_tokens(row),
                prompt_id=None if given is None else str(given),
                columns={
                    "prompt_messages": (
                        None if isinstance(prompt, str) else list(map(_role_and_content, prompt))
                    ),
                    "data_source": str(row.get("data_source") or data_source),
                    "ground_truth": truth_text(row.get("ground_truth")),
                    "sampling": dict(sampling or {}),
                    "policy": dict(policy or {}),
                    **_said({**row, "reward": reward, "score": None}, notes),
                },
            )

    return convert_lines(
        path,
        out,
        parse,
        codec=codec,
        max_tokens=(sampling or {}).get("max_tokens"),
        keep_unknown=errors == "report",
        errors=errors,
        **loop,
    )


def convert_reference(
    path: Paths,
    out: str | os.PathLike[str],
    *,
    codec: TextCodec,
    max_tokens: int | None = None,
    **loop: Any,
) -> ConversionReport:
    """Convert the reference implementation's JSONL, also of the data sets published with LenVM:

        {"conversations": [{"from": "system|human|gpt", "value": "..."}, ...],
         "meta_info": {"answer_token_length": 512, "lenvm_idx": 7, "dataset_name": "...",
                       "model_name": "...", "temperature": 1.0, "top_p": 1.0, "top_k": null,
                       "max_tokens": 16000, ...},
         "source_fields": {...}}

    It has no token ids and no finish_reason. A completion counts as truncated when
    `answer_token_length >= max_tokens`: one that ended exactly at the limit is taken for truncated
    too. The notes say how many reasons were inferred, how many came out as truncated, and for how
    many rows the new token count differs from `answer_token_length` (which counts EOS); a row where
    the two are more than a few
    per cent apart is a bad row: part of what was generated is not in it.

    Args:
        path, out, codec, loop: see `convert_lines`.
        max_tokens: token limit of rows whose meta_info has none.
    """

    def parse(row: dict[str, Any], notes: Counter[str]) -> Iterator[Found]:
        messages, answer = _conversation(row)
        meta = require(row, "meta_info", dict)
        expected = require(meta, "answer_token_length", int)
        limit = max_tokens if meta.get("max_tokens") is None else require(meta, "max_tokens", int)
        reason = None
        if limit is not None:
            reason = "length" if expected >= limit else "stop"
            notes["finish_reason inferred from answer_token_length and max_tokens"] += 1
            notes["finish_reason inferred as truncated"] += reason == "length"
        source = str(meta.get("dataset_name") or "unknown")
        settings = ("temperature", "top_p", "top_k", "max_tokens")
        yield Found(
            prompt=messages,
            answer=lambda: answer,
            reason=reason,
            tokens=expected,
            prompt_id=f"{source}/{_index(meta)}",
            columns={
                "prompt_messages": messages,
                "data_source": source,
                "ground_truth": truth_text((row.get("source_fields") or {}).get("final_answer")),
                "sampling": {key: meta.get(key) for key in settings},
                "policy": {"name": meta.get("model_name")},
                **_said(meta, notes),
            },
        )

    return convert_lines(path, out, parse, codec=codec, max_tokens=max_tokens, **loop)


def convert_verl(
    path: Paths,
    out: str | os.PathLike[str],
    *,
    codec: TextCodec,
    data_source: str = "verl",
    sampling: Mapping[str, Any] | None = None,
    policy_name: str | None = None,
    **loop: Any,
) -> ConversionReport:
    """Convert verl's rollout dumps, steps in order.

    With `trainer.rollout_data_dir` (or `validation_data_dir`) set, verl 0.9 writes `<step>.jsonl`,
    one line per completion, plus whatever the reward function returned:

        {"input": "...", "output": "...", "gts": "42", "score": 1.0, "step": 3, "uid": "..."}

    `input` is the rendered prompt and `output` the response, both decoded without special tokens.
    So the ids are made again from text, and the prompt's are those of a text without its chat
    markers: fit for length statistics and for training on prompts rendered the same way, not a
    record of what the policy read. There is no finish reason: a completion of `max_tokens` tokens
    (`data.max_response_length`) or more counts as truncated, and the limit must be given. The
    policy's revision becomes `global_step_<step>`, `score` the reward.

    verl's other dumps (`gen_batch.dp`, `tq_batch.pt` of its rollout skip) are pickled tensors; they
    hold the ids, and are read with verl itself.

    Args:
        path: directory or single `<step>.jsonl` files.
        out, codec, loop: see `convert_lines`.
        data_source: name to record.
        sampling: settings to record; its `max_tokens` serves to tell truncated completions.
        policy_name: name to record; the revision comes from the step.
    """

    def parse(row: dict[str, Any], notes: Counter[str]) -> Iterator[Found]:
        prompt, text = require(row, "input", str), require(row, "output", str)
        step = require(row, "step", int)
        yield Found(
            prompt=prompt,
            answer=lambda: {"content": text},
            note="a prompt without its special tokens",
            columns={
                "data_source": data_source,
                "ground_truth": truth_text(row.get("gts")),
                "sampling": dict(sampling or {}),
                "policy": {"name": policy_name, "revision": f"global_step_{step}"},
                **_said(row, notes),
            },
        )

    limit = (sampling or {}).get("max_tokens")
    return convert_lines(path, out, parse, codec=codec, max_tokens=limit, **loop)


def _said(row: Mapping[str, Any], notes: Counter[str]) -> dict[str, Any]:
    """Reward, grader, session and turn of a completion, as far as its source says them.

    Args:
        row: `reward` or `score`, `grader`, `session_id`, `turn`; what is none is noted, not taken.
    """
    found: dict[str, Any] = {}
    reward = row["reward"] if row.get("reward") is not None else row.get("score")
    turn = row.get("turn")
    if isinstance(reward, int | float) and math.isfinite(reward):
        found["reward"] = float(reward)
    elif reward is not None:
        notes["a reward that is no finite number, left out"] += 1
    if isinstance(turn, int) and not isinstance(turn, bool) and 0 <= turn < 1 << 31:
        found["turn"] = turn
    elif turn is not None:
        notes["a turn that is no number from 0, left out"] += 1
    for key in ("session_id", "grader"):
        if isinstance(row.get(key), str | int):
            found[key] = str(row[key])
    return found


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
