"""How does a value move along a response? A page to look at, in one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.pages.html import render, script_json
from lenvm_rl.pages.view_data import Chosen, choose_rollouts, from_text, page_data
from lenvm_rl.rollouts.atomic import replacing

SCRIPTS = ["view_state.js", "view_text.js", "view_chart.js", "view_list.js", "view_main.js"]

__all__ = ["choose_rollouts", "page_data", "page_html", "view_rollouts", "view_text", "write_page"]


def view_rollouts(
    lenvms: Sequence[str | Path],
    rollouts: str | Path,
    out: str | Path,
    *,
    prompt_ids: Sequence[str] = (),
    limit: int = 20,
) -> dict[str, Any]:
    """Write the page of completions of a rollout file.

    Args:
        lenvms: directories of value models, drawn side by side; at most four read well.
        rollouts: rollout file of the same tokenizer.
        out: HTML file to write.
        prompt_ids: only completions of these prompts.
        limit: at most so many completions; a page of 20 long ones has some megabytes.
    Returns:
        Figures: responses, tokens, left_out, bytes, and the path.
    """
    _need_lenvms(lenvms)
    sha = tokenizer_sha(load_tokenizer(lenvms[0]))
    chosen = choose_rollouts(rollouts, prompt_ids=prompt_ids, limit=limit, sha=sha)
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
