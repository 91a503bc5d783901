"""What is a prompt set, and how does one of its rows become a prompt?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lenvm_rl.rollouts.prompts import Prompt

_ABSENT = (None, "")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a data set, which says where it stands when something is wrong with it."""

    values: Mapping[str, Any]
    where: str
    """Names the set and the row."""
    index: int
    """Number of the row in its split, from 0."""
    split: str

    def get(self, *names: str) -> Any:
        """The first of these columns that holds something, or None."""
        found = (self.values.get(name) for name in names)
        return next((value for value in found if value not in _ABSENT), None)

    def need(self, *names: str, why: str = "") -> Any:
        """Like `get`, but a ValueError where there is nothing.

        Args:
            why: what the column is for.
        """
        value = self.get(*names)
        if value is None:
            what = "nothing in" if any(name in self.values for name in names) else "no column"
            raise ValueError(
                f"{self.where}: {what} {' or '.join(map(repr, names))}"
                f"{', ' + why if why else ''}. Columns: {', '.join(map(str, self.values))}."
            )
        return value

    def text(self, *names: str, why: str = "") -> str:
        """Like `need`, for a string that is not blank."""
        value = self.need(*names, why=why)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{self.where}: {names[0]!r} must be text, got {value!r:.80}.")
        return value

    def kept(self, *names: str) -> dict[str, Any]:
        """These columns, as far as they hold something."""
        return {name: value for name in names if (value := self.get(name)) is not None}


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
    fields: tuple[str, ...] = ()
    """What `Prompt.extra` may hold."""
    truth: str = "none"
    """What `Prompt.ground_truth` holds."""
    template: str
    """Name of the template, see templates.py."""
    licence: str
    """As the source states it."""
    build: Callable[[Row], Prompt | None]
    """None leaves the row out, as the set's own filter has it."""


def user_prompt(text: str) -> list[dict[str, str]]:
    """One user message, without a system message: chat templates have their own."""
    return [{"role": "user", "content": text}]
