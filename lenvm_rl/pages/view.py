"""The viewer: how a value moves along a response, on a page in one file that needs no network.

For a response of L tokens and each model, L numbers each of

    length   l_t    predicted remaining tokens before token t+1 (states s_0 .. s_{L-1})
    u        u_t    the same as a discounted length, 1 - gamma**l
    score    s_t+1  TD score of token t+1 (`core.td_scores`), null where it is not known
    fan             quantiles of the remaining tokens, where the model knows a distribution
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from lenvm_rl.core import predicted_length, td_scores, value_of_logit
from lenvm_rl.model import (
    LengthValueModel,
    check_tokenizer,
    load_tokenizer,
    tokenizer_sha,
)
from lenvm_rl.model.forward import config_space, iter_outputs
from lenvm_rl.pages.html import render, script_json
from lenvm_rl.pages.token_text import token_texts
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.rollouts.text import TextCodec

FAN = (0.05, 0.25, 0.75, 0.95)
"""Levels of the quantiles that are drawn: the middle half and nine tenths of the outcomes."""
SCRIPTS = ["view_state.js", "view_text.js", "view_chart.js", "view_list.js", "view_main.js"]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Responses to show, and how many were left out."""

    rows: list[Rollout]
    left_out: int = 0
    notes: tuple[str, ...] = field(default=())
    """Sentences that the page shows with every response."""


def view(
    lenvm: list[str],
    out: str | Path,
    *,
    rollouts: str | Path | None = None,
    prompt_id: list[str] | None = None,
    limit: int = 20,
    per_prompt: int | None = None,
    prompt: str | None = None,
    response: str | None = None,
    truncated: bool = False,
) -> dict[str, Any]:
    """Draw predicted and true remaining lengths along responses, and the shifts on their text.

    The page is one file that opens from disk without a network.

    Example: `lenvm view --lenvm runs/demo/checkpoint/lenvm --rollouts runs/demo/rollouts/heldout
    --limit 12 --out view.html`

    Example: `lenvm view --lenvm demo --prompt "12 + 7 = ?"
    --response "the answer is 19" --out view.html`

    Args:
        lenvm: value model: directory, hub id, or `demo`; repeat to draw several together.
        out: HTML file to write.
        rollouts: rollout file.
        prompt_id: only completions of this prompt; repeatable.
        limit: maximum number of completions; a page of 20 long ones has some megabytes.
        per_prompt: maximum number of completions of each prompt (default: all).
        prompt: or one user message, or @FILE that holds it.
        response: with --prompt: the response, or @FILE.
        truncated: the response given as text did not end by itself.
    Returns:
        Figures, as `view_rollouts`.
    """
    if (rollouts is None) == (prompt is None) or (prompt is None) != (response is None):
        raise ValueError("give either --rollouts, or --prompt and --response together.")
    if rollouts is not None:
        if truncated:
            raise ValueError(
                "--truncated is about a response given as text; a rollout file knows it."
            )
        chosen = {"prompt_ids": prompt_id or (), "limit": limit, "per_prompt": per_prompt}
        return view_rollouts(lenvm, rollouts, out, **chosen)
    if prompt_id:
        raise ValueError("--prompt-id chooses within --rollouts, which was not given.")
    return view_text(lenvm, _text(prompt), _text(response), out, ended=not truncated)


def summary(figures: Mapping[str, Any]) -> str:
    """What a page shows, on one line."""
    left = f"; {figures['left_out']:,} more responses left out" if figures["left_out"] else ""
    return (
        f"{figures['responses']} responses, {figures['tokens']:,} tokens, {figures['models']} "
        f"models: {figures['page']} ({figures['bytes'] / 1e6:.1f} MB){left}"
    )


def _text(given: str | None) -> str:
    """The text itself, or what `@FILE` holds."""
    given = given or ""
    if not given.startswith("@"):
        return given
    path = Path(given[1:])
    if not path.is_file():
        raise ValueError(f"{given!r} names a file that does not exist: {path}.")
    return path.read_text(encoding="utf-8")


def view_rollouts(
    lenvms: Sequence[str | Path],
    rollouts: str | Path,
    out: str | Path,
    *,
    prompt_ids: Sequence[str] = (),
    limit: int = 20,
    per_prompt: int | None = None,
) -> dict[str, Any]:
    """Write the page of completions of a rollout file.

    Args:
        lenvms: directories of value models, drawn side by side; at most four read well.
        rollouts: rollout file of the same tokenizer.
        out: HTML file to write.
        prompt_ids: only completions of these prompts.
        limit: maximum number of completions; a page of 20 long ones has some megabytes.
        per_prompt: maximum number of completions of each prompt; None: all.
    Returns:
        Figures: responses, tokens, left_out, bytes, and the path.
    """
    _need_lenvms(lenvms)
    sha = tokenizer_sha(load_tokenizer(lenvms[0]))
    which: dict[str, Any] = {"prompt_ids": prompt_ids, "limit": limit, "per_prompt": per_prompt}
    chosen = choose_rollouts(rollouts, sha=sha, **which)
    return _write(lenvms, chosen, out, title=Path(rollouts).resolve().name)


def view_text(
    lenvms: Sequence[str | Path],
    prompt: str,
    response: str,
    out: str | Path,
    *,
    ended: bool = True,
) -> dict[str, Any]:
    """Write the page of one response given as text; arguments and result as `view_rollouts`."""
    _need_lenvms(lenvms)
    chosen = from_text(load_tokenizer(lenvms[0]), prompt, response, ended=ended)
    return _write(lenvms, chosen, out, title="one response")


def page_html(data: Mapping[str, Any]) -> str:
    """The page of `page_data`."""
    return render(
        "view.html",
        styles=["common.css", "view.css"],
        scripts=SCRIPTS,
        title=data["title"],
        data=script_json(data),
    )


def write_page(data: Mapping[str, Any], out: str | Path) -> int:
    """Write the page whole or not at all; returns its size in bytes."""
    html = page_html(data).encode()
    with replacing(Path(out)) as file:
        file.write_bytes(html)
    return len(html)


def _write(
    lenvms: Sequence[str | Path], chosen: Chosen, out: str | Path, *, title: str
) -> dict[str, Any]:
    data = page_data(lenvms, chosen, title=title)
    return {
        "page": str(out),
        "models": len(data["models"]),
        "responses": len(chosen.rows),
        "tokens": sum(row.length for row in chosen.rows),
        "left_out": chosen.left_out,
        "bytes": write_page(data, out),
    }


def _need_lenvms(lenvms: Sequence[str | Path]) -> None:
    if not lenvms:
        raise ValueError("give at least one LenVM: its values are what the page shows.")


def choose_rollouts(
    path: str | Path,
    *,
    prompt_ids: Sequence[str] = (),
    limit: int = 20,
    per_prompt: int | None = None,
    sha: str | None = None,
) -> Chosen:
    """The first `limit` completions of a rollout file, or of the given prompts in it, and of each
    prompt the first `per_prompt`.

    Raises:
        ValueError: a prompt id that the file does not have (some that it has are named), a file of
            another tokenizer than `sha`, or fewer than one completion of each prompt.
    """
    if per_prompt is not None and per_prompt < 1:
        raise ValueError(f"per_prompt must be at least 1 completion, got {per_prompt}.")
    reader = RolloutReader(path, tokenizer_sha=sha)
    if not prompt_ids:
        rows = list(islice(_first_of_each(reader.iter_rows(), per_prompt), limit))
        return Chosen(rows=rows, left_out=len(reader) - len(rows))
    wanted = dict.fromkeys(prompt_ids)
    found: list[Any] = [row for row in reader.iter_rows() if row.prompt_id in wanted]
    missing = sorted(set(wanted) - {row.prompt_id for row in found})
    if missing:
        known = dict.fromkeys(row.prompt_id for row in islice(reader.iter_rows(), 1000))
        raise ValueError(
            f"{path} has no prompt_id {', '.join(map(repr, missing))}; it has e.g. "
            f"{', '.join(map(repr, list(known)[:5]))}."
        )
    order = list(wanted)
    found.sort(key=lambda row: (order.index(row.prompt_id), row.sample_id))
    rows = list(islice(_first_of_each(found, per_prompt), limit))
    return Chosen(rows=rows, left_out=len(found) - len(rows))


def _first_of_each(rows: Iterable[Any], per_prompt: int | None) -> Iterator[Any]:
    """The rows, of each prompt at most `per_prompt`."""
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row.prompt_id] += 1
        if per_prompt is None or seen[row.prompt_id] <= per_prompt:
            yield row


def from_text(tokenizer: Any, prompt: str, response: str, *, ended: bool = True) -> Chosen:
    """A response given as text, re-tokenised; with `ended`, EOS is its last token.

    Raises:
        ValueError: an empty response, or a tokenizer without EOS.
    """
    codec = TextCodec.from_tokenizer(tokenizer, tokenizer_sha=tokenizer_sha(tokenizer))
    message = [{"role": "user", "content": prompt}]
    ids = codec.completion(response, finished=ended)
    if not response or not ids:
        raise ValueError("the response is empty: there are no tokens to show a value along.")
    row = Rollout(
        prompt_id="text",
        sample_id=0,
        prompt_ids=codec.prompt(message),
        response_ids=ids,
        finish_reason="stop" if ended else "length",
        prompt_messages=message,
    )
    note = "This text was re-tokenised: a policy need not have sampled these very tokens."
    return Chosen(rows=[row], notes=(note,))


def page_data(lenvms: Sequence[str | Path], chosen: Chosen, *, title: str) -> dict[str, Any]:
    """Everything that the page needs, as one JSON object.

    Args:
        lenvms: directories of value models of one tokenizer.
        chosen: responses.
        title: heading of the page.
    Raises:
        ValueError: models of different tokenizers, not a LenVM, or a response longer than a
            model's context.
    """
    tokenizer = load_tokenizer(lenvms[0])
    responses = [_response(tokenizer, row, chosen.notes) for row in chosen.rows]
    models = []
    for path, name in zip(lenvms, short_names(lenvms), strict=True):
        model: Any = LengthValueModel.from_pretrained(path)
        check_tokenizer(model.config, tokenizer)
        models.append({"name": name, "path": str(path), **_facts(model.config)})
        for response, series in zip(responses, _series(model, chosen.rows), strict=True):
            response["series"].append(series)
    return {
        "title": title,
        "models": models,
        "responses": responses,
        "left_out": chosen.left_out,
    }


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, e.g. `a/lenvm` and `b/lenvm`."""
    parts = [Path(path).resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"the same LenVM was given twice: {', '.join(map(str, paths))}.")


def _facts(config: Any) -> dict[str, Any]:
    policy = (config.policy or {}).get("name")
    return {"gamma": config.require_gamma(), "target": config.target, "policy": policy}


def _response(tokenizer: Any, row: Rollout, notes: Iterable[str]) -> dict[str, Any]:
    special = set(tokenizer.all_special_ids)
    messages = row.prompt_messages or []
    return {
        "id": row.prompt_id,
        "sample": row.sample_id,
        "source": row.data_source,
        "truth": row.ground_truth,
        "ended": not row.truncated,
        "prompt": "\n\n".join(
            m["content"] if m["role"] == "user" else f"[{m['role']}] {m['content']}"
            for m in messages
        )
        or tokenizer.decode(list(row.prompt_ids)),
        "prompt_tokens": len(row.prompt_ids),
        "tokens": token_texts(tokenizer, row.response_ids, before=row.prompt_ids),
        "special": [i for i, token in enumerate(row.response_ids) if token in special],
        "notes": list(notes),
        "series": [],
    }


def _series(model: LengthValueModel, rows: Sequence[Rollout]) -> list[dict[str, list[Any]]]:
    """Numbers along every row, in the order of the rows."""
    by_row = {id(row): outputs for row, outputs in iter_outputs(model, rows)}
    return [_numbers(model.config, by_row[id(row)], ended=not row.truncated) for row in rows]


def _numbers(config: Any, outputs: Tensor, *, ended: bool) -> dict[str, list[Any]]:
    space, z = config_space(config), config.read(outputs)
    u = -value_of_logit(z.double(), **space)
    scores = td_scores(u, gamma=space["gamma"], ended=ended)
    return {
        "length": [float(f"{x:.5g}") for x in predicted_length(z, **space).tolist()],
        "u": [round(x, 6) for x in u.tolist()],
        "score": [None if x != x else round(x, 6) for x in scores.tolist()],
        "fan": _fan(config, outputs),
    }


def _fan(config: Any, outputs: Tensor) -> list[list[int]] | None:
    """Quantiles `FAN` of the tokens to go, where the LenVM knows a distribution."""
    if config.length_bins is None:
        return None
    spread = config.length_bins.of(outputs)
    return [[int(x) for x in spread.quantile(level).tolist()] for level in FAN]
