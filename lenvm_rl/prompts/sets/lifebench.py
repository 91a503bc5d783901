"""LIFEBench: tasks that ask for an answer of a certain length (arXiv 2505.16234).

The message is the task as it stands, with its two placeholders unfilled:

    {word_count_type}  the control: equal to, at most, at least
    {word_count}       the length

The evaluation fills them for every control and length (and turns words into tokens). One of the 320
tasks without a text to summarise occurs twice: both are kept, as the official scores have it.
"""

from __future__ import annotations

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.sets.prompt_set import PromptSet, Row
from lenvm_rl.prompts.sets.templates import ask

PLACEHOLDERS = ("{word_count_type}", "{word_count}")
LANGUAGES = ("en", "cn")


def lifebench_prompt(row: Row) -> Prompt:
    """The task of a row.

    Raises:
        ValueError: no placeholders, or another language than English and Chinese.
    """
    task, language = row.text("task"), row.text("lang")
    if language not in LANGUAGES:
        raise ValueError(f"{row.where}: 'lang' must be one of {LANGUAGES}, got {language!r}.")
    missing = [name for name in PLACEHOLDERS if name not in task]
    if missing:
        raise ValueError(
            f"{row.where}: the task lacks {' and '.join(missing)}, so no length can be asked for."
        )
    category = row.text("category")
    return Prompt(
        prompt_id=row.id("lifebench", "id"),
        messages=ask("plain", task),
        data_source=f"lifebench/{category}-{language}",
        extra={"lang": language, "category": category, **row.kept("id", "type")},
    )


LIFEBENCH = PromptSet(
    name="lifebench",
    about="tasks that ask for a length, English and Chinese",
    hub="LIFEBench/LIFEBench",
    split="test",
    columns=("task", "lang", "category"),
    fields=("id", "category", "type", "lang"),
    template="plain",
    licence="MIT",
    repeats=True,
    build=lifebench_prompt,
)
