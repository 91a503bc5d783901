r"""Questions about pictures: MathVista and R1-Onevision.

The message begins with `<image>`, which stands for the one image of the prompt, as verl reads it.

MathVista's hint line is replaced by a shorter one after the question, as in the reference. Where
the reference asks open questions without a box, here all ask for one: the graders read the box.
Choices are answered by letter, and the truth is the letter (`extra.answer` has the choice's text).
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Any

from lenvm_rl.prompts.prompt import Prompt, image_uri
from lenvm_rl.prompts.sets.prompt_set import PromptSet, Row, ask

MARK = "<image>"
LETTERS = "ABCDEFGHIJ"
_CHOICES = "\nChoices:\n"
_MATHVISTA_EXTRA = ("pid", "question_type", "answer_type", "choices", "precision", "unit", "answer")

# R1-Onevision's own words, gathered from several data sets.
_DIRECTLY = "Based on the image, directly select the correct answer for the following question:"
_REASON = (
    "First perform reasoning, then finally select the question from the choices in the following "
    "format: Answer: xxx."
)
_OPTION = "Hint: Please answer the question and provide the correct option letter"
_LAST_WORDS = (
    "Answer with the given options directly.",
    "Answer with the option's letter from the given choices directly.",
    "Answer the question using a single word or phrase.",
    "Answer the question with a short phrase.",
    "Answer the question by selecting only one option from the given options.",
    "Answer the question with Yes or No.",
)
_CHOOSING = (_OPTION, _DIRECTLY, _REASON, *_LAST_WORDS)
_FIRST_WORDS = (
    f"{_OPTION}, e.g., A, B, C, D, at the end.",
    "Hint: Please answer the question and provide the final answer at the end.",
    _DIRECTLY,
    _REASON,
)
_GRAPH_WORDS = (
    "Please clarify the meaning conveyed by this graph.",
    "Could you shed some light on the insights conveyed by this graph?",
)


def onevision_question(text: str) -> tuple[str, bool]:
    """(the question alone, whether it is one of choice) of a human turn of R1-Onevision."""
    text = text.removeprefix(MARK).removeprefix("\n") if text.startswith(MARK) else text
    choosing = any(words in text for words in _CHOOSING)
    first = next((words for words in _FIRST_WORDS if text.startswith(words + "\n")), None)
    if first is not None:
        text = text.removeprefix(first + "\n")
    last = next((w for w in (*_LAST_WORDS, *_GRAPH_WORDS) if text.endswith("\n" + w)), None)
    if last is not None:
        text = text.removesuffix("\n" + last)
    return text.strip(), choosing


def onevision_prompt(row: Row) -> Prompt:
    """A question of R1-Onevision with its image."""
    first = row.need("conversations")[0]
    if first.get("from") != "human":
        raise ValueError(f"{row.where}: the conversation begins with {first.get('from')!r}.")
    question, choosing = onevision_question(first.get("value") or "")
    return Prompt(
        prompt_id=row.id("onevision", "id"),
        messages=_about_image(ask("math" if choosing else "open", question)),
        data_source=f"onevision/{'choice' if choosing else 'open'}",
        extra=row.kept("id"),
        images=[_image(row, "image")],
    )


def mathvista_prompt(row: Row) -> Prompt:
    """A question of MathVista with its image and all that its grader needs.

    Raises:
        ValueError: no answer (the test split hides them), an answer that is no choice, ...
    """
    why = "which the grader needs"
    kind, _ = row.need("question_type", why=why), row.need("answer_type", why=why)
    question = row.text("query")
    hint, newline, rest = question.partition("\n")
    question = (rest if newline and hint.startswith("Hint:") else question).strip()
    truth, source = row.truth("answer", why=why), "math/mathvista"
    if kind == "multi_choice":
        truth, source = _letter(row, truth), "multiple_choice/mathvista"
        before, marked, choices = question.partition(_CHOICES)
        question = f"{before}\n\nAnswer with the option letter, e.g., A, B, C, D.{marked}{choices}"
    else:
        question = f"{question}\nAnswer with {_wanted(row)}."
    return Prompt(
        prompt_id=row.id("mathvista", "pid"),
        messages=_about_image(ask("math", question)),
        data_source=source,
        ground_truth=truth,
        extra=row.kept(*_MATHVISTA_EXTRA),
        images=[_image(row, "decoded_image", "image")],
    )


def _letter(row: Row, answer: str) -> str:
    choices = list(row.need("choices", why="which the grader needs"))
    if answer not in choices or choices.index(answer) >= len(LETTERS):
        raise ValueError(f"{row.where}: the answer {answer!r} is none of the choices {choices}.")
    return LETTERS[choices.index(answer)]


def _wanted(row: Row) -> str:
    """What kind of answer a free question asks for."""
    kind = row.get("answer_type")
    if kind == "integer":
        return "an integer"
    if kind == "list":
        return "a Python list"
    if kind == "float":
        places = int(row.need("precision", why="to which the grader rounds"))
        number = {1: "one decimal place", 2: "two decimal places"}
        return f"a number with {number.get(places, f'{places} decimal places')}"
    return "a word or a number"


def _about_image(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**message, "content": f"{MARK}\n{message['content']}"} for message in messages]


def _image(row: Row, *columns: str) -> str:
    """The image as a data URI or URL, from how `datasets`, Parquet or JSON have it."""
    image: Any = row.need(*columns, why="the picture")
    if isinstance(image, dict):  # as Parquet has it
        image = image.get("bytes") or image.get("path")
    if hasattr(image, "save"):  # a PIL image, as `datasets` decodes it
        file = io.BytesIO()
        image.save(file, format="PNG")
        image = file.getvalue()
    if isinstance(image, str):
        if image.startswith(("data:", "http:", "https:")):
            return image
        image = _image_bytes(row, image)
    try:
        return image_uri(image)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{row.where}: the picture cannot be read: {error}") from error


def _image_bytes(row: Row, text: str) -> bytes:
    """A file beside the data set, or base64."""
    if "." not in text[-5:]:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"{row.where}: the picture is no base64: {error}") from error
    source = row.source or Path()
    path = (source if source.is_dir() else source.parent) / text
    if not path.is_file():
        raise ValueError(f"{row.where}: its picture {path} is not there.")
    return path.read_bytes()


MATHVISTA = PromptSet(
    name="mathvista",
    about="mathematics about pictures (testmini, 1,000)",
    hub="AI4Math/MathVista",
    split="testmini",
    columns=("query", "question_type", "answer_type", "answer", "choices", "decoded_image"),
    fields=_MATHVISTA_EXTRA,
    truth="the choice's letter, or the answer",
    template="math",
    licence="CC-BY-SA-4.0; pictures as their sources",
    build=mathvista_prompt,
)
ONEVISION = PromptSet(
    name="onevision",
    about="R1-Onevision, the paper's questions about pictures",
    hub="Fancy-MLLM/R1-Onevision",
    split="train",
    columns=("conversations", "image"),
    fields=("id",),
    template="math or open",
    licence="Apache-2.0",
    build=onevision_prompt,
)
