"""Tests that the ground truth of a program holds, read from the shapes that data sets have.

    {"asserts": ["assert f(1) == 2", ...]}                   statements after the solution
    {"test": "def check(candidate): ...", "entry_point": f}  HumanEval's own; check(f) is called
    {"inputs": ["1 2\\n", ...], "outputs": ["3\\n", ...]}      programs that read and print
    {"fn_name": "f", "inputs": [[1, 2]], "outputs": [3]}     calls and their values
    [{"input": ..., "output": ..., "testtype": "stdin"}]     LiveCodeBench's list, of either kind
    ["assert f(1) == 2", ...]                                statements

as an object, its JSON, or Python's own spelling of it. Null and empty fields are absent. Other text
is one statement. What cannot be run is refused: text that is no Python, tests that import what the
sandbox has not, tests that name nothing to compare with.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_fns.code_blocks import free_names

_CHECK = "check_the_answer"  # one of MBPP's functions is called check itself


@dataclass(frozen=True, kw_only=True)
class Tests:
    """Tests of a program; one of the three kinds."""

    asserts: tuple[str, ...] = ()
    """Statements that raise if the program is wrong."""
    fn_name: str | None = None
    """Function that is called with `inputs`; None for programs that read them."""
    inputs: tuple[Any, ...] = ()
    """Lists of arguments, or texts to read."""
    outputs: tuple[Any, ...] = ()
    """Values of the calls, or texts that are printed."""
    wanted: tuple[str, ...] = ()
    """Names that the tests use: those that the program must define, and builtins, which it may."""


def read_tests(answer: Any) -> Tests:
    """The tests of a ground truth.

    Raises:
        ValueError: there are none, or they cannot be run.
    """
    truth = _plain(parsed_truth(answer))
    if isinstance(truth, str):
        truth = {"asserts": [truth]} if truth.strip() else {}
    if isinstance(truth, list):
        truth = _cases(truth)
    if not isinstance(truth, dict):
        raise ValueError(f"the ground truth {_short(answer)} has no tests")
    truth = {key: value for key, value in truth.items() if value not in (None, [], {}, "")}
    if "asserts" in truth or "test" in truth:
        return _statements(truth.get("asserts", truth.get("test")), truth.get("entry_point"))
    inputs = truth.get("inputs", truth.get("input"))  # APPS; code_contests
    outputs = truth.get("outputs", truth.get("output"))
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise ValueError(
            f"the ground truth {_short(answer)} has no tests: give 'asserts', or as many 'inputs' "
            "as 'outputs' (and 'fn_name' for calls), or HumanEval's 'test' with its 'entry_point'"
        )
    name = truth.get("fn_name") or truth.get("func_name")
    return _programs(inputs, outputs) if name is None else _calls(str(name), inputs, outputs)


def parsed_truth(answer: Any) -> Any:
    """An object from its JSON (of its JSON), or from Python's spelling of it; else the text."""
    for _ in range(3):
        if not isinstance(answer, str):
            break
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            break
    if isinstance(answer, str) and answer.lstrip().startswith(("{", "[")):
        try:
            return ast.literal_eval(answer.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(
                f"the ground truth {_short(answer)} has no tests: it is no JSON ({error})"
            ) from error
    return answer


def _plain(value: Any) -> Any:
    """Lists and dicts instead of arrays, tuples and other mappings."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _cases(cases: list[Any]) -> dict[str, Any]:
    """LiveCodeBench's list, or one of statements, as an object."""
    if cases and all(isinstance(case, str) for case in cases):
        return {"asserts": cases}
    if not cases or not all(isinstance(c, dict) and {"input", "output"} <= c.keys() for c in cases):
        return {}
    names = {_function_of(case) for case in cases}
    if len(names) > 1:
        raise ValueError(f"the ground truth tests {len(names)} different things: give one kind")
    inputs, outputs = [case["input"] for case in cases], [case["output"] for case in cases]
    return {"fn_name": names.pop(), "inputs": inputs, "outputs": outputs}


def _function_of(case: dict[str, Any]) -> str | None:
    """The function that a case calls; None for a program that reads and prints."""
    about = parsed_truth(case.get("metadata") or {})
    name = case.get("fn_name") or case.get("func_name")
    name = name or (about.get("func_name") if isinstance(about, dict) else None)
    if name is None and case.get("testtype") == "functional":
        raise ValueError(
            "the ground truth's tests are 'functional' but name no function: add 'fn_name' to each "
            "(LiveCodeBench has it in its metadata as 'func_name')"
        )
    return name


def _statements(asserts: Any, entry_point: str | None) -> Tests:
    statements = [asserts] if isinstance(asserts, str) else asserts
    if not isinstance(statements, list) or not all(isinstance(one, str) for one in statements):
        raise ValueError(f"the ground truth's asserts must be texts, got {_short(asserts)}")
    uncalled = len(statements) == 1 and re.search(r"^def check\(", statements[0], re.MULTILINE)
    if entry_point and uncalled and not re.search(r"^check\(", statements[0], re.MULTILINE):
        renamed = statements[0].replace("def check(", f"def {_CHECK}(")
        statements = [f"{renamed}\n{_CHECK}({entry_point})\n"]
    try:
        for statement in statements:
            compile(statement, "test.py", "exec")
        tree = ast.parse("\n".join(statements))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"the ground truth {_short(statements[0])} cannot be run: neither JSON of tests nor "
            f"Python ({error})"
        ) from error
    modules = {name.split(".")[0] for name in _imported(tree)}
    if foreign := sorted(modules - sys.stdlib_module_names):
        raise ValueError(
            f"the ground truth's tests import {', '.join(foreign)}, but programs are tested with "
            "the standard library alone: rewrite or leave out such rows"
        )
    return Tests(asserts=tuple(statements), wanted=tuple(sorted(free_names(tree, known=()))))


def _imported(tree: ast.AST) -> list[str]:
    nodes = list(ast.walk(tree))
    named = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
    return named + [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module]


def _programs(inputs: Sequence[Any], outputs: Sequence[Any]) -> Tests:
    given, printed = [_text(value) for value in inputs], [_text(value) for value in outputs]
    if not any(text.strip() for text in printed):
        raise ValueError("the ground truth's outputs are empty: every program would pass")
    return Tests(inputs=tuple(given), outputs=tuple(printed))


def _text(value: Any) -> str:
    """What is read or printed; a list holds its lines."""
    if value is None or isinstance(value, dict):
        raise ValueError(f"the ground truth's inputs and outputs are no texts: {_short(value)}")
    return "\n".join(map(_text, value)) if isinstance(value, list) else str(value)


def _calls(name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Tests:
    name = name.rpartition(".")[2]  # Solution.f
    written = all(isinstance(value, str) for value in [*inputs, *outputs])
    try:  # LiveCodeBench writes a line of JSON for every argument
        calls = [
            [json.loads(line) for line in value.splitlines() if line.strip()]
            if isinstance(value, str)
            else value
            for value in inputs
        ]
        values = [json.loads(value) if written else value for value in outputs]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the ground truth's calls of {name} cannot be read: {error}") from error
    bad = next((call for call in calls if not isinstance(call, list)), None)
    if bad is not None:
        raise ValueError(
            f"the ground truth's input {_short(bad)} must be the list of {name}'s arguments"
        )
    if all(value is None for value in values):
        raise ValueError(
            f"the ground truth expects no value of any call of {name}: every function would pass"
        )
    return Tests(fn_name=name, inputs=tuple(calls), outputs=tuple(values), wanted=(name,))


def _short(value: Any) -> str:
    return repr(str(value)[:80])
