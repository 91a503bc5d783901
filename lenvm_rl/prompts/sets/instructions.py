"""Instructions: WildChat with the paper's script filter, IFEval, MT-Bench, TinyStories, LIFEBench.

IFEval's records carry what its own checker asks for; `ifeval_rules` are those of its prompts whose
rules the grader of that name checks. No grader of this project reads the others.

LIFEBench (arXiv 2505.16234) asks for an answer of a certain length. The message is the task as it
stands, with its two placeholders unfilled:

    {word_count_type}  the control: equal to, at most, at least
    {word_count}       the length

The evaluation fills them for every control and length (and turns words into tokens). One of the 320
tasks without a text to summarise occurs twice: both are kept, as the official scores have it.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.sets.prompt_set import PromptSet, Row, ask

LANGUAGES = ("English", "Chinese")
UNCHECKED = (
    "language:response_language",
    "length_constraints:number_sentences",
    "change_case:capital_word_frequency",
)
"""Rules of IFEval that grader `ifeval_rules` does not check: they need a model of a language."""
_LATIN = "A-Za-z\u00c0-\u00ff\u0100-\u017f\u0180-\u024f\u1e00-\u1eff"
_GREEK = "Α-Ωα-ωϵϑϕϖ"  # noqa: RUF001 - letters of formulas, without accents
_CJK = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f"
    "\U0002b740-\U0002b81f\U0002b820-\U0002ceaf\uf900-\ufaff"
)
_OTHER = re.compile(f"[^\x00-\x7f{_LATIN}{_GREEK}{_CJK}]")


def known_scripts(text: str) -> bool:
    """Whether every letter is Latin, Chinese or a Greek one of formulas; anything else may be."""
    return text.isascii() or not any(found.group().isalpha() for found in _OTHER.finditer(text))


def wildchat_prompt(row: Row) -> Prompt | None:
    """The first message of a conversation; None for other languages, other scripts, and blanks."""
    conversation = row.need("conversation")
    first = conversation[0]
    if first.get("role") != "user":
        raise ValueError(f"{row.where}: the conversation begins with {first.get('role')!r}.")
    text, language = first.get("content") or "", row.need("language")
    if language not in LANGUAGES or not text.strip() or not known_scripts(text):
        return None
    return Prompt(
        prompt_id=row.id("wildchat"),
        messages=ask("instructions", text),
        data_source=f"wildchat/{language}",
        extra=row.kept("conversation_id", "conversation_hash", "language", "toxic", "redacted"),
    )


def ifeval_prompt(row: Row) -> Prompt:
    """A prompt of IFEval with its instructions and their arguments.

    The hub's Parquet has the arguments of all instructions in every row, as None: these are left
    out, or the checker would be called with them.
    """
    names = row.need("instruction_id_list", why="the instructions, which the grader needs")
    given = row.need("kwargs", why="their arguments, which the grader needs")
    if len(names) != len(given):
        raise ValueError(f"{row.where}: {len(names)} instructions, but {len(given)} 'kwargs'.")
    arguments = [{k: v for k, v in (one or {}).items() if v is not None} for one in given]
    return Prompt(
        prompt_id=row.id("ifeval", "key"),
        messages=ask("plain", row.text("prompt")),
        data_source="ifeval",
        extra={"instruction_id_list": list(names), "kwargs": arguments, **row.kept("key")},
    )


def checkable_prompt(row: Row) -> Prompt | None:
    """The same with the rules as ground truth; None where one of them is in `UNCHECKED`."""
    prompt = ifeval_prompt(row)
    if not set(UNCHECKED).isdisjoint(prompt.extra["instruction_id_list"]):
        return None
    rules = {name: prompt.extra[name] for name in ("instruction_id_list", "kwargs")}
    return replace(prompt, data_source="ifeval_rules", ground_truth=json.dumps(rules))


def mt_bench_prompt(row: Row) -> Prompt:
    """The first turn of an MT-Bench question; `extra` has all turns and the reference answers."""
    turns = row.need("turns", "prompt")
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError(f"{row.where}: the turns must be texts, got {turns!r:.80}.")
    category = row.need("category", why="by which the judge picks its words")
    return Prompt(
        prompt_id=row.id("mt_bench", "question_id", "prompt_id"),
        messages=ask("plain", turns[0]),
        data_source=f"mt_bench/{category}",
        extra={"turns": list(turns), "category": category, **row.kept("reference")},
    )


_STORY = "Continue this story to its end.\n\n{prompt}"


def tinystories_prompt(row: Row) -> Prompt | None:
    """The first paragraph of a story, to be continued; None where there is no second one."""
    opening, _, rest = row.text("text").strip().partition("\n")
    if not rest.strip():
        return None
    return Prompt(
        prompt_id=row.id("tinystories"),
        messages=ask(_STORY, opening.strip()),
        data_source="tinystories",
    )


WILDCHAT = PromptSet(
    name="wildchat",
    about="WildChat, English and Chinese, the paper's instructions (529k)",
    hub="allenai/WildChat",
    split="train",
    columns=("conversation", "language"),
    fields=("conversation_id", "language", "toxic", "redacted"),
    template="instructions",
    licence="ODC-BY",
    drop=("openai_moderation", "detoxify_moderation"),
    build=wildchat_prompt,
)
IFEVAL = PromptSet(
    name="ifeval",
    about="541 prompts with checkable instructions",
    hub="google/IFEval",
    split="train",
    columns=("prompt", "instruction_id_list", "kwargs"),
    fields=("key", "instruction_id_list", "kwargs"),
    template="plain",
    licence="Apache-2.0",
    build=ifeval_prompt,
)
IFEVAL_RULES = replace(
    IFEVAL,
    name="ifeval_rules",
    about="IFEval's prompts whose rules are graded here, 446 of 541",
    truth="the rules, as JSON",
    build=checkable_prompt,
)
MT_BENCH = PromptSet(
    name="mt_bench",
    about="80 questions of two turns, the first is asked",
    hub="HuggingFaceH4/mt_bench_prompts",
    split="train",
    columns=("turns", "category"),
    fields=("turns", "category", "reference"),
    template="plain",
    licence="Apache-2.0",
    build=mt_bench_prompt,
)
TINYSTORIES = PromptSet(
    name="tinystories",
    about="openings of short stories to continue (2.1M)",
    hub="roneneldan/TinyStories",
    split="train",
    columns=("text",),
    template=_STORY,
    licence="CDLA-Sharing-1.0",
    build=tinystories_prompt,
)

PLACEHOLDERS = ("{word_count_type}", "{word_count}")
_LIFEBENCH_IN = ("en", "cn")


def lifebench_prompt(row: Row) -> Prompt:
    """The task of a row.

    Raises:
        ValueError: no placeholders, or another language than English and Chinese.
    """
    task, language = row.text("task"), row.text("lang")
    if language not in _LIFEBENCH_IN:
        raise ValueError(f"{row.where}: 'lang' must be one of {_LIFEBENCH_IN}, got {language!r}.")
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
