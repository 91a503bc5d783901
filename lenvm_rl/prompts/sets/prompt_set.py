"""What is a prompt set, and how does one of its rows become a prompt?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts.record import truth_text


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
        """Like `need`, as the text that graders read (`rollouts.truth`)."""
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
    """Name of the template, see templates.py."""
    licence: str
    """As the source states it."""
    repeats: bool = False
    """Whether equal prompts are kept: a benchmark that has some has an official number of items."""
    drop: tuple[str, ...] = ()
    """Large columns that are never read."""
    build: Callable[[Row], Prompt | None]
    """None leaves the row out, as the set's own filter has it."""
