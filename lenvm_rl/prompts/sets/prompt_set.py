r"""A prompt set, one of its rows on the way to a prompt, and the words a question is asked with.

LenVMs of the paper are trained on prompts in the words of `TEMPLATES`, byte for byte, one user
message without a system message. `{}` of `\boxed{}` is part of the text, so templates are filled by
`ask`, not by format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenvm_rl.prompts.prompt import Prompt, is_message
from lenvm_rl.rollouts.record import truth_text

PLACE = "{prompt}"

_CODE = (
    "Please solve the programming task below in {language} step by step and then provide the "
    "complete solution in a single {language} code block.\n\n{prompt}"
)

TEMPLATES: dict[str, str] = {
    "math": "Please reason step by step, and put your final answer within \\boxed{}.\n\n{prompt}",
    "instructions": "Please follow the instructions below.\n\n{prompt}",
    "python": _CODE.replace("{language}", "Python"),
    "cpp": _CODE.replace("{language}", "C++"),
    "open": "Please reason step by step, and provide your final answer at the end.\n\n{prompt}",
    "plain": "{prompt}",
}


def ask(template: str, text: str) -> list[dict[str, Any]]:
    """One user message: `text` in the words of a template.

    Args:
        template: a name of `TEMPLATES`, or words of one's own with `{prompt}` in them.
    Raises:
        ValueError: neither.
    """
    words = TEMPLATES.get(template, template)
    if PLACE not in words:
        raise ValueError(
            f"template {template!r}: give one of {', '.join(TEMPLATES)}, or words with {PLACE} "
            "where the prompt stands."
        )
    return [{"role": "user", "content": words.replace(PLACE, text)}]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a data set, which says where it stands when something is wrong with it."""

    values: Mapping[str, Any]
    where: str
    """Names the set, its source and the row."""
    index: int
    """Number of the row in its split, from 0."""
    split: str
    source: Path | None = None
    """Folder or file that it comes from, if local."""

    def get(self, *names: str) -> Any:
        """The first of these columns that holds something, or None."""
        found = (self.values.get(name) for name in names)
        return next((value for value in found if value is not None and value != ""), None)

    def need(self, *names: str, why: str = "") -> Any:
        """Like `get`, but a ValueError where there is nothing.

        Args:
            why: what the column is.
        """
        value = self.get(*names)
        if value is None:
            what = "nothing in" if any(name in self.values for name in names) else "no"
            raise ValueError(
                f"{self.where}: {what} column {' or '.join(map(repr, names))}"
                f"{f' ({why})' if why else ''}. There are: {', '.join(map(str, self.values))}."
            )
        return value

    def text(self, *names: str) -> str:
        """Like `need`, for a string that is not blank."""
        value = self.need(*names)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{self.where}: {names[0]!r} must be text, got {value!r:.80}.")
        return value

    def truth(self, *names: str, why: str = "the ground truth") -> str:
        """Like `need`, as the text that graders read (`truth_text`)."""
        value = self.need(*names, why=why)
        try:
            text = truth_text(value)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from error
        if text is None:
            raise ValueError(f"{self.where}: nothing in column {names[0]!r} ({why}).")
        return text

    def kept(self, *names: str) -> dict[str, Any]:
        """These columns, as far as they hold something."""
        return {name: value for name in names if (value := self.get(name)) is not None}

    def id(self, name: str, *columns: str) -> str:
        """Prompt id: the set's name and the row's own id, or else its split and number."""
        own = self.get(*columns)
        return f"{name}-{self.split}-{self.index}" if own is None else f"{name}-{own}"


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Where a set comes from and what its prompts look like."""

    name: str
    about: str
    """One line."""
    hub: str
    """Data set of the hub; `config` and `split` are what is read without being asked otherwise."""
    config: str | None = None
    split: str
    columns: tuple[str, ...]
    """What is read, as the hub's data set names it."""
    fields: tuple[str, ...] = ()
    """What `Prompt.extra` may hold."""
    truth: str = "none"
    """What `Prompt.ground_truth` holds."""
    template: str
    """A name of `TEMPLATES`, or words of one's own."""
    licence: str
    """As the source states it."""
    repeats: bool = False
    """Whether equal prompts are kept: a benchmark that has some has an official number of items."""
    drop: tuple[str, ...] = ()
    """Large columns that are never read."""
    build: Callable[[Row], Prompt | None]
    """None leaves the row out, as the set's own filter has it."""


def question_set(
    question: str | Sequence[str],
    truth: str | Sequence[str] = (),
    *,
    why: str = "the ground truth",
    holds: str = "none",
    ids: Sequence[str] = (),
    prefix: str | None = None,
    extra: Sequence[str] = (),
    data_source: str,
    template: str,
    **facts: Any,
) -> PromptSet:
    """The set of a column with questions, perhaps one with their truths.

    Args:
        question: column of texts, or of lists of {"role", "content"} messages, which are taken as
            they are; further names where copies of the data set have others.
        truth: column with the ground truths; then every row needs one.
        why: what the truth is, for errors.
        holds: `PromptSet.truth`.
        ids: columns with the row's own id.
        prefix: of the prompt ids, by default the set's name.
        extra: columns to keep in `Prompt.extra`.
        data_source: what reward functions tell the set by.
        template: a name of `TEMPLATES`, or words with `{prompt}` in them, for texts.
        facts: of the `PromptSet`.
    """
    ask(template, "")  # a wrong template is told before anything is read
    asked = (question,) if isinstance(question, str) else tuple(question)
    known = (truth,) if isinstance(truth, str) else tuple(truth)

    def build(row: Row) -> Prompt:
        value = row.need(*asked)
        if isinstance(value, str):
            messages = ask(template, row.text(*asked))
        elif isinstance(value, list) and value and all(map(is_message, value)):
            messages = [{"role": one["role"], "content": one["content"]} for one in value]
        else:
            raise ValueError(
                f"{row.where}: column {asked[0]!r} must hold text or messages with 'role' and "
                f"'content', got {value!r:.80}."
            )
        return Prompt(
            prompt_id=row.id(prefix or facts["name"], *ids),
            messages=messages,
            data_source=data_source,
            ground_truth=row.truth(*known, why=why) if known else None,
            extra=row.kept(*extra),
        )

    return PromptSet(
        columns=(asked[0], *known[:1]),
        truth=holds,
        template=template,
        build=build,
        **{"fields": tuple(extra), **facts},
    )


def column_set(
    column: str,
    *,
    truth: str | None = None,
    extra: tuple[str, ...] = (),
    template: str = "plain",
    data_source: str = "column",
    split: str = "train",
) -> PromptSet:
    """Any other data set by its columns, see `question_set`; it has no place on the hub.

    Args:
        data_source: e.g. `math/mine` for grader `math`.
    """
    return question_set(
        column,
        truth or (),
        prefix="row",
        extra=extra,
        template=template,
        data_source=data_source,
        name="column",
        about=f"column {column!r}",
        hub="",
        split=split,
        holds=truth or "none",
        licence="as its source states",
    )
