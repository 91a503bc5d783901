r"""The part of a response that is its program, told by what the parts define, not where they stand.

A response is cut at its fences (``` or ~~~). A part is a candidate if it parses as Python and the
fence before it names no other language (`text`, `bash`, `output`, ...); prose does not parse, so a
closing fence opens nothing. A part that a fence inside a string has cut is put together again. Of
the candidates the one is taken that

    defines most of the names that the tests use (a method of `class Solution` counts),
    reads the input, where programs are tested by input and output,
    is whole: uses no name that it does not define, and does something,
    defines anything,
    comes last

It is given the earlier parts that define names which it lacks, and what competition judges import
for their solutions (`List`, `deque`, `sqrt`, ...). Standard library alone: it also runs inside the
sandbox, because parsing what a policy wrote is not for the trainer's process.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

LONGEST = 100_000  # characters of a program; more is garbage
MOST_FENCES = 200  # from the end
_LONGEST_RUN = 8  # parts that one program may be cut into by fences in its strings

_FENCE = re.compile(r"(?:`{3,}|~{3,})[ \t]*([^\n`~]*)")
_PYTHON = re.compile(
    r"\{?\.?(?:i?python|i?py|pypy|code|solution|answer)[\d.]*(?![A-Za-z])|[\w./-]+\.py\b", re.I
)
# names that the judges of APPS and LeetCode bring along
_BROUGHT = {
    "typing": "Any Deque Dict Generator Iterable Iterator List Optional Set Tuple Union",
    "collections": "Counter OrderedDict defaultdict deque namedtuple",
    "itertools": "accumulate chain combinations groupby permutations product",
    "functools": "cache cmp_to_key lru_cache reduce",
    "heapq": "heapify heappop heappush",
    "bisect": "bisect_left bisect_right",
    "math": "ceil comb factorial floor gcd inf sqrt",
    "": "bisect collections functools heapq itertools math random re string sys typing",
}
_IMPORTS = {
    name: f"from {module} import {name}" if module else f"import {name}"
    for module, names in _BROUGHT.items()
    for name in names.split()
}
_KNOWN = {*dir(builtins), "exit", "quit", "__name__", "__file__", "__doc__"}


class _Part(NamedTuple):
    code: str
    defined: set[str]  # at its top, and methods of class Solution
    free: set[str]  # used and nowhere bound
    reads: bool  # the standard input
    acts: bool  # calls or defines something


def find_program(
    text: str, *, wanted: Collection[str] = (), reads: bool = False, judged: bool = False
) -> str | None:
    """The program of a response; None where nothing in it is Python.

    Args:
        text: the response.
        wanted: names that the tests use.
        reads: whether the program is tested by what it reads and prints.
        judged: bring along what competition judges import.
    """
    brought = _IMPORTS if judged else {}
    parts = list(_parts(text))
    if not parts:
        return None

    def rank(place: int) -> tuple[int, ...]:
        part = parts[place]
        whole = part.acts and not part.free - brought.keys()
        return (
            len(part.defined & set(wanted)),
            reads and part.reads,
            whole,
            bool(part.defined),
            place,
        )

    best = max(range(len(parts)), key=rank)
    code, lacking = parts[best].code, parts[best].free
    for part in reversed(parts[:best]):
        if part.defined & lacking:
            code, lacking = f"{part.code}\n\n{code}", lacking - part.defined | part.free
    imports = [line for name, line in brought.items() if name in lacking]
    future = re.match(r"(?:from __future__ import [^\n]*\n)*", code)[0] if imports else ""
    return future + "\n".join([*imports, code[len(future) :]])


def _parts(text: str) -> Iterator[_Part]:
    """The parts of a text that are Python, in order."""
    fences = list(_FENCE.finditer(text))
    parts = [(0, ""), *((fence.end(), fence[1]) for fence in fences)][-MOST_FENCES:]
    ends = [*(fence.start() for fence in fences), len(text)][-MOST_FENCES:]
    place = 0
    while place < len(parts):
        start, language = parts[place]
        part, taken = None, 1
        if not language.strip() or _PYTHON.match(language):
            part, taken = _joined(text, start, ends[place : place + _LONGEST_RUN])
        if part is not None:
            yield part
        place += taken


def _joined(text: str, start: int, ends: list[int]) -> tuple[_Part | None, int]:
    """The part from `start` on and how many fences it takes: more than one where a string is open
    at the first."""
    for taken, end in enumerate(ends, start=1):
        code = text[start:end]
        part = _part(code)
        if part is not None:
            return part, taken
        if not (code.count('"""') % 2 or code.count("'''") % 2):
            break
    return None, 1


def _part(code: str) -> _Part | None:
    """A part that parses and is not empty; None otherwise."""
    code = textwrap.dedent(code.replace("\r\n", "\n")).strip("\n")
    if not code.strip() or len(code) > LONGEST:
        return None
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes = list(ast.walk(tree))
    solutions = [node for node in tree.body if getattr(node, "name", None) == "Solution"]
    methods = {inner.name for s in solutions for inner in s.body if hasattr(inner, "args")}
    named = {getattr(node, "id", getattr(node, "attr", None)) for node in nodes}
    opened = {node.value for node in nodes if isinstance(node, ast.Constant)}
    return _Part(
        code=code,
        defined=set(_bound(_outer(tree.body))) | methods,
        free=free_names(tree),
        reads=bool({"input", "stdin", "fileinput"} & named)
        or ("open" in named and bool({0, "/dev/stdin"} & opened)),
        acts=any(isinstance(node, (ast.Call, ast.FunctionDef, ast.ClassDef)) for node in nodes),
    )


def free_names(tree: ast.AST, *, known: Collection[str] = _KNOWN) -> set[str]:
    """Names that a tree uses and nowhere binds, known ones left out; none with `import *`."""
    nodes = list(ast.walk(tree))
    if any(isinstance(node, ast.alias) and node.name == "*" for node in nodes):
        return set()
    used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return used - set(_bound(nodes)) - set(known)


def _outer(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of statements, without what is inside of functions and classes."""
    waiting = list(statements)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def _bound(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Names that these nodes bind."""
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            yield node.name
