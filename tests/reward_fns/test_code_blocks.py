"""A response's program is found by what its parts define."""

import ast

import pytest

from reward_fns.code_blocks import find_program, free_names

F = "def f(x):\n    return x + 1"
READER = "a = int(input())\nprint(a * 2)"


def block(code, language="python"):
    return f"```{language}\n{code}\n```\n"


@pytest.mark.parametrize(
    "text",
    [
        block(F),
        "Here:\n" + block(F) + "It adds one.",
        block(F) + "Use it:\n" + block("print(f(1))"),
        block(F) + block("assert f(1) == 2\nprint('ok')"),
        block(F) + "It prints:\n" + block("2", ""),
        block(F) + block("f = 3", "text"),
        block(F) + block("python f.py", "bash") + "That is all.",
        block("def f(x):\n    return x") + "Better:\n" + block(F),  # the last that defines it
        block("def g(x):\n    pass") + block(F) + block("def h():\n    pass"),
        F + "\n```\nThe prompt had opened the fence.",
        "Sure: ```python\n" + F + "```",
        "```python\n" + F,  # cut
        "```\nx y\n``` ```python\n" + F,
        block(F, "python 3"),
        block(F, 'Python title="f.py"'),
        block(F, "{.python}"),
        f"~~~py\n{F}\n~~~",
        "1. Here:\n   ```python\n   def f(x):\n       return x + 1\n   ```\n",
        block(F).replace("\n", "\r\n"),
        F,
    ],
)
def test_the_program_with_the_wanted_function_is_found(text):
    assert find_program(text, wanted=["f"]).strip() == F


def test_a_fence_inside_a_string_cuts_nothing():
    code = 'def f(x):\n    """Add.\n\n    ```python\n    f(1)\n    ```\n    """\n    return x + 1'
    assert find_program(block(code) + block("print(f(1))"), wanted=["f"]) == code


@pytest.mark.parametrize(
    "text",
    [
        block(READER) + "It prints:\n" + block("4", ""),
        block(READER) + block("print(2 * 2)"),
        block(READER) + block("solve(2)"),
        block("print(3)") + block(READER),
        "Example input:\n" + block("2", "") + block(READER),
        block(READER) + block("print(4)", "output"),
    ],
)
def test_a_program_that_reads_is_found(text):
    assert find_program(text, reads=True) == READER


@pytest.mark.parametrize(
    "text", ["", "No code.", block("no python here"), block("print(1)", "js"), "```", "` `` ```\n"]
)
def test_no_program(text):
    assert find_program(text, wanted=["f"]) is None


def test_a_program_that_defines_something_goes_before_one_line():
    program = "def main():\n    print(3)\nmain()"
    text = block(program) + "For instance:\n" + block("print(4)")
    assert find_program(text, reads=True) == program


def test_a_method_of_solution_counts():
    solution = "class Solution:\n    def f(self, x):\n        return x"
    assert find_program(block(solution) + block("print(1)"), wanted=["f"]) == solution


def test_what_a_part_lacks_is_taken_from_earlier_ones():
    parts = ["import math", "def half(x):\n    return math.floor(x / 2)", "print(half(3))"]
    text = "".join(map(block, [*parts, "def f(x):\n    return half(x)", "print(f(4))"]))
    scope = {}
    exec(compile(find_program(text, wanted=["f"]), "program", "exec"), scope)
    assert scope["f"](5) == 2 and "print" not in find_program(text, wanted=["f"])


def test_what_judges_bring_along_is_imported_where_it_is_missing():
    code = "from __future__ import annotations\ndef f(x: List[int]):\n    return deque(x)"
    program = find_program(code, wanted=["f"], judged=True)
    assert free_names(ast.parse(program)) == set() and find_program(code, wanted=["f"]) == code
    exec(compile(program, "program", "exec"), {})


def test_deep_expressions_are_read():
    code = "total = " + " + ".join(["1"] * 500) + "\n" + F
    assert find_program(code, wanted=["f"]) == code


def test_much_of_anything_ends_soon():
    for text in ("```python\n" * 50_000, "`" * 100_000, "```\n(x\n" * 20_000, "(" * 90_000):
        assert find_program(text, wanted=["f"]) is None
    find_program('```\n"""\n' * 20_000 + "-" * 90_000, wanted=["f"])
