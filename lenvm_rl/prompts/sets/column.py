"""Any other data set: a column with prompts, perhaps one with the truth.

The column holds texts, or lists of {"role", "content"} messages, which are taken as they are.
"""

from __future__ import annotations

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.sets.prompt_set import PromptSet, Row
from lenvm_rl.prompts.sets.templates import ask


def column_set(
    column: str,
    *,
    truth: str | None = None,
    extra: tuple[str, ...] = (),
    template: str = "plain",
    data_source: str = "column",
    split: str = "train",
) -> PromptSet:
    """The set of a column.

    Args:
        column: that has the prompts.
        truth: column that has the ground truths; then every row needs one.
        extra: columns to keep in `Prompt.extra`.
        template: a name of `TEMPLATES`, or words with `{prompt}` in them, for texts.
        data_source: what reward functions tell the set by, e.g. `math/mine` for grader `math`.
    """
    ask(template, "")  # a wrong template is told before anything is read

    def build(row: Row) -> Prompt:
        value = row.need(column)
        if isinstance(value, str):
            messages = ask(template, row.text(column))
        elif isinstance(value, list) and value and all(map(_is_message, value)):
            messages = [{"role": one["role"], "content": one["content"]} for one in value]
        else:
            raise ValueError(
                f"{row.where}: column {column!r} must hold text or messages with 'role' and "
                f"'content', got {value!r:.80}."
            )
        known = None if truth is None else row.truth(truth)
        return Prompt(
            prompt_id=row.id("row"),
            messages=messages,
            data_source=data_source,
            ground_truth=known,
            extra=row.kept(*extra),
        )

    return PromptSet(
        name="column",
        about=f"column {column!r}",
        hub="",
        split=split,
        columns=(column,) if truth is None else (column, truth),
        fields=extra,
        truth=truth or "none",
        template=template,
        licence="as its source states",
        build=build,
    )


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )
