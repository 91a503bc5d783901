"""Programs: HumanEval and MBPP, asked for with the paper's Python template.

The ground truth is what the `code` grader runs, JSON `{"asserts": [...]}`. A stub's imports and
helpers are run before its tests, because some tests call them and an answer need not repeat them.
"""

from __future__ import annotations

import json

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.sets.prompt_set import PromptSet, Row
from lenvm_rl.prompts.sets.templates import ask

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
