"""Programs: HumanEval, MBPP and OpenCodeReasoning-2, asked for with the paper's templates.

The ground truth of the first two is what the `code` grader runs, JSON `{"asserts": [...]}`. A
stub's imports and helpers are run before its tests, because some tests call them and an answer need
not repeat them.

Rows of OpenCodeReasoning-2 name a benchmark, a split and a row number; the text is there (see its
card). `datasets` no longer runs the loading scripts of TACO and APPS, so their files are read. A
folder named as the source may hold copies of the four, named as in `BENCHMARKS`; what it lacks
comes from the hub. A copy whose `question` is filled in already needs none. Deviation: a row whose
text cannot be found is left out, where the reference asks "-".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.rows import load_rows, read_rows
from lenvm_rl.prompts.sets.prompt_set import PromptSet, Row, ask

_STUB = "Complete this function, and repeat the imports that it needs.\n\n```python\n{stub}\n```"
_CHECK = "check_the_answer"
_TESTS = "{task}\n\nThe code must pass these tests:\n\n```python\n{tests}\n```"


def humaneval_prompt(row: Row) -> Prompt:
    """A function of HumanEval to complete."""
    return _stub_prompt(row, "humaneval")


def mbpp_prompt(row: Row) -> Prompt:
    """A task of MBPP, as the hub has it (text and asserts) or as stubs like HumanEval's."""
    if row.get("entry_point") is not None:
        return _stub_prompt(row, "mbpp")
    tests = row.need("test_list", why="the tests, which the grader needs")
    before = row.get("test_imports") or row.get("test_setup_code") or []
    setup = before if isinstance(before, str) else "\n".join(before)
    task = row.text("prompt", "text")
    return Prompt(
        prompt_id=row.id("mbpp", "task_id"),
        messages=ask("python", _TESTS.format(task=task.strip(), tests="\n".join(tests))),
        data_source="code/mbpp",
        ground_truth=json.dumps({"asserts": [f"{setup}\n{test}".strip() for test in tests]}),
        extra={"test_list": list(tests), **row.kept("task_id", "test_imports")},
    )


def _stub_prompt(row: Row, name: str) -> Prompt:
    stub, function = row.text("prompt"), row.text("entry_point")
    test = row.text("test")
    before, found, _ = stub.partition(f"def {function}(")
    if not found:
        raise ValueError(f"{row.where}: the prompt does not define {function!r}, its entry_point.")
    if "def check(" not in test:
        raise ValueError(f"{row.where}: 'test' does not define check, which the grader calls.")
    if "math." in test and "import math" not in before:  # lost in copies of MBPP
        before += "import math\n"
    # one of MBPP's functions is called check itself
    renamed = test.replace("def check(", f"def {_CHECK}(")
    checked = f"{before}\n{renamed}\n{_CHECK}({function})\n".lstrip()
    return Prompt(
        prompt_id=row.id(name, "task_id"),
        messages=ask("python", _STUB.format(stub=stub.strip("\n"))),
        data_source=f"code/{name}",
        ground_truth=json.dumps({"asserts": [checked]}),
        extra={"entry_point": function, "test": test, "stub": stub, **row.kept("task_id")},
    )


HUMANEVAL = PromptSet(
    name="humaneval",
    about="164 functions to complete",
    hub="openai/openai_humaneval",
    split="test",
    columns=("prompt", "entry_point", "test"),
    fields=("task_id", "entry_point", "test", "stub"),
    truth="JSON of the code grader's asserts",
    template="python",
    licence="MIT",
    build=humaneval_prompt,
)
MBPP = PromptSet(
    name="mbpp",
    about="short tasks with asserts, sanitized (test: 257)",
    hub="google-research-datasets/mbpp",
    config="sanitized",
    split="test",
    columns=("prompt", "test_list"),
    fields=("task_id", "test_list", "test_imports"),
    truth="JSON of the code grader's asserts",
    template="python",
    licence="CC-BY-4.0",
    build=mbpp_prompt,
)

UNFILLED = ("", "-")
LANGUAGES = ("python", "cpp")
# `dataset` column -> (folder of a copy, hub name, files on the hub where a script describes them)
BENCHMARKS: dict[str, tuple[str, str, str | None]] = {
    "taco": ("taco", "BAAI/TACO", "ALL/{split}-*.parquet"),
    "apps": ("apps", "codeparrot/apps", "{split}.jsonl"),
    "code_contests": ("code_contests", "deepmind/code_contests", None),
    "open-r1/codeforces": ("codeforces", "open-r1/codeforces", None),
}
_EXTRA = ("source", "dataset", "split", "index", "difficulty", "question_id")


class Benchmarks:
    """The texts of the four benchmarks, each split read when it is first asked for."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._splits: dict[tuple[str, str], Sequence[Mapping[str, Any]]] = {}
        self._texts: dict[tuple[str, str, int], str | None] = {}

    def text(self, name: str, split: str, index: int) -> str | None:
        """Text of a task; None where the benchmark has none.

        Raises:
            ValueError: an unknown benchmark, a split that cannot be read, or no such row.
        """
        if name not in BENCHMARKS:
            raise ValueError(f"unknown benchmark {name!r}: known are {', '.join(BENCHMARKS)}.")
        key = (name, split, index)
        if key not in self._texts:
            rows = self._rows(name, split)
            if not 0 <= index < len(rows):
                raise ValueError(f"{name}, split {split}, has {len(rows)} rows but no {index}.")
            self._texts[key] = task_text(name, rows[index])
        return self._texts[key]

    def _rows(self, name: str, split: str) -> Sequence[Mapping[str, Any]]:
        if (name, split) not in self._splits:
            folder, hub, files = BENCHMARKS[name]
            copy = None if self.folder is None else self.folder / folder
            if copy is not None and copy.is_dir():
                rows: Any = read_rows(str(copy), hub=hub, config=None, split=split)
            else:
                files = None if files is None else files.format(split=split)
                rows = load_rows(hub, None, split=split, files=files)
            self._splits[name, split] = rows if hasattr(rows, "__getitem__") else list(rows)
        return self._splits[name, split]


def task_text(name: str, row: Mapping[str, Any]) -> str | None:
    """The task as its benchmark's row states it; Codeforces has it in parts."""
    if name in ("taco", "apps"):
        return row["question"]
    text = row["description"]
    if not text or name == "code_contests":
        return text or None
    for title in ("input", "output"):
        if row.get(f"{title}_format"):
            text += f"\n\n{title.capitalize()}\n\n{row[f'{title}_format']}"
    if row.get("examples"):
        text += "\n\nExamples"
        for example in row["examples"]:
            for title in ("input", "output"):
                if title in example:
                    text += f"\n\n{title.capitalize()}\n\n{example[title]}"
    return f"{text}\n\nNote\n\n{row['note']}" if row.get("note") else text


@lru_cache(maxsize=4)
def _benchmarks(folder: Path | None) -> Benchmarks:
    return Benchmarks(folder)


def opencode_prompt(row: Row) -> Prompt | None:
    """A task in the language of its split; None where its text cannot be found."""
    if row.split not in LANGUAGES:
        raise ValueError(f"{row.where}: splits are {' and '.join(LANGUAGES)}, not {row.split!r}.")
    text = row.get("question")
    if text is None or text in UNFILLED:
        text = _joined(row)
    if text is None or not text.strip():
        return None
    return Prompt(
        prompt_id=row.id("opencode"),
        messages=ask(row.split, text),
        data_source=f"opencode/{row.split}",
        extra=row.kept(*_EXTRA),
    )


def _joined(row: Row) -> str | None:
    name, split = row.need("dataset"), row.need("split")
    folder = row.source if row.source is None or row.source.is_dir() else row.source.parent
    try:
        return _benchmarks(folder).text(name, split, int(row.need("index")))
    except ValueError as error:
        copies = ", ".join(place for place, _, _ in BENCHMARKS.values())
        raise ValueError(
            f"{row.where}: its text is in {name}, which cannot be read (a folder as the source may "
            f"hold copies in {copies}): {error}"
        ) from error
    except KeyError as error:
        raise ValueError(f"{row.where}: {name} has no column {error}.") from error


OPENCODE = PromptSet(
    name="opencode",
    about="OpenCodeReasoning-2, the paper's programs; also split cpp",
    hub="nvidia/OpenCodeReasoning-2",
    split="python",
    columns=("question", "dataset", "split", "index"),
    fields=_EXTRA,
    template="python",
    licence="CC-BY-4.0; tasks as their benchmarks",
    drop=("r1_generation", "qwq_critique", "solution", "judgement"),
    build=opencode_prompt,
)
