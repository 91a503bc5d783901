"""Size figures of the house: lines, files, circles of imports, clones, options; any checkout.

    python scripts/bench/house.py                    this tree
    python scripts/bench/house.py OTHER_ROOT --json before.json

Prints one JSON object last. What is counted, blank lines, comments and docstrings included:

    installed   Python files of the wheel, as pyproject.toml says: `packages` without `exclude`,
                and the folders under `force-include` (which hatchling takes whole)
    tree        all Python files that are no tests; `tests` are those under tests/
    circles     strongly connected sets of modules, over all imports, those inside functions too;
                imports for type checkers alone are counted in `circles_with_types`
    commands, options, arguments   what `--help` of each command lists, `--help` itself left out;
                `option_names` counts a name once
    clones      pairs of places with `RUN` equal lines of code or more, without imports,
                docstrings, comments and lines of punctuation: of equal text, and of equal shape
                (all names and literals alike), where at least `KINDS` of the lines differ
    places      code files outside its own folder that name the evaluation `EVALUATION`: pages,
                docstrings and comments do not count
    long        functions of more than `SCREEN` lines, tests left out
    help_s      median seconds of `lenvm --help` in a fresh process
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import io
import json
import keyword
import os
import re
import statistics
import subprocess
import sys
import time
import tokenize
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

RUN, KINDS = 6, 4
EVALUATION = "scheduling"
SCREEN = 90
_NOT_OURS = {"__pycache__", "runs", "build", "dist", "node_modules"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (ast.Module, ast.ClassDef, *_FUNCTIONS)


def python_files(root: Path) -> list[Path]:
    """Python files below `root`, hidden and generated folders left out; paths relative to it."""
    found = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name[0] != "." and name not in _NOT_OURS]
        found += [(Path(folder) / name).relative_to(root) for name in names if name[-3:] == ".py"]
    return sorted(found)


def installed_files(root: Path, files: Iterable[Path]) -> list[Path]:
    """Those of `files` that the wheel holds."""
    wheel = tomllib.loads((root / "pyproject.toml").read_text())
    for key in ("tool", "hatch", "build", "targets", "wheel"):
        wheel = wheel[key]

    def within(file: Path, patterns: Iterable[str]) -> bool:
        name = file.as_posix()
        return any(
            name.startswith(pattern.strip("/") + "/") or fnmatch.fnmatch(name, pattern.lstrip("/"))
            for pattern in patterns
        )

    packages, exclude = wheel["packages"], wheel.get("exclude", [])
    forced = wheel.get("force-include", {})
    return [
        file
        for file in files
        if within(file, forced) or within(file, packages) and not within(file, exclude)
    ]


def imports(root: Path, files: Iterable[Path], *, types: bool = False) -> dict[str, set[str]]:
    """Module -> modules of `files` that it imports, at the top or inside a function.

    Args:
        types: also what stands under `if TYPE_CHECKING`.
    """
    modules = {
        ".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in files
    }

    def targets(node: ast.AST, package: list[str]) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield f"{name}.{alias.name}" if f"{name}.{alias.name}" in modules else name
        elif isinstance(node, ast.If) and not types and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                yield from targets(child, package)
        else:
            for child in ast.iter_child_nodes(node):
                yield from targets(child, package)

    graph = {}
    for name, file in modules.items():
        found = targets(ast.parse((root / file).read_text()), list(file.parts[:-1]))
        graph[name] = {other for other in found if other in modules and other != name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of more than one module that reach one another by imports."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {name: reached(name) for name in graph}
    found = {frozenset(b for b in reach[a] if a in reach[b]) for a in graph}
    return sorted(sorted(members) for members in found if len(members) > 1)


def code_tokens(source: str) -> dict[int, list[tokenize.TokenInfo]]:
    """Line number -> tokens that begin there; no comments, docstrings or imports."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node = node.body[0]
        elif not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT and token.string.strip():
            lines[token.start[0]].append(token)
    return {number: found for number, found in lines.items() if number not in left_out}


def code_lines(source: str, *, shape: bool) -> list[str]:
    """Lines of code in one spelling; with `shape`, all names are one name, all literals one."""

    def spelt(token: tokenize.TokenInfo) -> str:
        if not shape or keyword.iskeyword(token.string) or token.type == tokenize.OP:
            return token.string
        return "name" if token.type == tokenize.NAME else "0"

    lines = (" ".join(map(spelt, tokens)) for tokens in code_tokens(source).values())
    return [line for line in lines if re.search(r"\w", line)]


def clones(sources: Iterable[str], *, shape: bool) -> int:
    """Pairs of places with at least `RUN` equal lines; the longest run of a pair counts once."""
    places = defaultdict(list)
    for index, source in enumerate(sources):
        lines = code_lines(source, shape=shape)
        for at in range(len(lines) - RUN + 1):
            window = tuple(lines[at : at + RUN])
            if len(set(window)) >= KINDS:
                places[window].append((index, at))
    pairs = {
        (a, b)
        for found in places.values()
        for i, a in enumerate(found)
        for b in found[i + 1 :]
        if a[0] != b[0] or b[1] - a[1] >= RUN
    }
    return sum(((a, i - 1), (b, j - 1)) not in pairs for (a, i), (b, j) in pairs)


def names_evaluation(source: str, name: str) -> bool:
    """Whether code holds `name` as an identifier, in an import, or in a string of one word."""
    tokens = (token for found in code_tokens(source).values() for token in found)
    texts = [token.string for token in tokens if " " not in token.string]
    texts += re.findall(r"^\s*(?:from|import) .*", source, re.MULTILINE)
    return any(re.search(rf"(?<![-\w]){name}(?![-\w])", text) for text in texts)


_WALK = """
import contextlib, io, json, re, sys
from lenvm_rl.cli import main

def shown(path):
    sys.argv = ["lenvm", *path, "--help"]
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")  # where boxes can be drawn, they are
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    out.flush()
    return out.buffer.getvalue().decode()

def walk(path):
    found = {" ".join(path): {"options": [], "arguments": []}}
    # boxes drawn by rich (typer) or by tyro, one row to a line: the terminal is wide
    for title, box in re.findall(r"╭([^╮]*)╮(.*?)╰", shown(path), re.DOTALL):
        names = re.findall(r"│[ •*]*(-*[a-z][\\w-]*)(?=[ ,]|│)", box)
        options = [n for n in names if n[0] == "-" and n not in ("--help", "-h")]
        found[" ".join(path)]["options"] += options
        if "rguments" in title:
            found[" ".join(path)]["arguments"] += [n for n in names if n[0] != "-"]
        elif "ommands" in title:
            for name in names:
                found |= walk([*path, name])
    return found

print(json.dumps(walk([])))
"""


def run_python(root: Path, program: str, *args: str) -> str:
    """What a program prints in a fresh process in which `lenvm_rl` is the one of `root`."""
    wide = {"COLUMNS": "300", "TERMINAL_WIDTH": "300", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        env={**os.environ, **wide, "PYTHONPATH": str(root)},
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def command_line(root: Path) -> dict[str, float]:
    """Commands, options and start-up of `lenvm`."""
    found = json.loads(run_python(root, _WALK))
    groups = {path.rpartition(" ")[0] for path in found}
    commands = [path for path in found if path not in groups]
    names = [name for path in commands for name in found[path]["options"]]
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        run_python(root, "from lenvm_rl.cli import main; main()", "--help")
        seconds.append(time.perf_counter() - started)
    return {
        "commands": len(commands),
        "options": len(names),
        "option_names": len(set(names)),
        "arguments": sum(len(found[path]["arguments"]) for path in commands),
        "help_s": round(statistics.median(seconds[1:]), 2),  # the first one fills caches
    }


def long_functions(file: Path, source: str) -> list[str]:
    return [
        f"{file}:{node.name} {length}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, _FUNCTIONS)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > SCREEN
    ]


def house(root: Path) -> dict[str, object]:
    """All figures but those of the command line."""
    files = python_files(root)
    text = {file: (root / file).read_text() for file in files}
    tests = [file for file in files if file.parts[0] == "tests"]
    tree = [file for file in files if file.parts[0] != "tests"]
    installed = installed_files(root, tree)
    packages = [file for file in installed if file.parts[0] in ("lenvm_rl", "reward_fns")]
    own = (f"lenvm_rl/evals/{EVALUATION}/", "scripts/bench/house.py")
    figures: dict[str, object] = {}
    for name, group in (("installed", installed), ("tree", tree), ("tests", tests)):
        figures[f"{name}_files"] = len(group)
        figures[f"{name}_lines"] = sum(text[file].count("\n") for file in group)
    figures["evals_files"] = sum(file.parts[:2] == ("lenvm_rl", "evals") for file in tree)
    with_types = circles(imports(root, packages, types=True))
    figures["circles"] = len(circles(imports(root, packages)))
    figures["circles_with_types"] = len(with_types)
    figures["clones"] = clones((text[file] for file in tree), shape=False)
    figures["clones_of_shape"] = clones((text[file] for file in tree), shape=True)
    places = [
        file.as_posix()
        for file in tree
        if not file.as_posix().startswith(own) and names_evaluation(text[file], EVALUATION)
    ]
    long = [found for file in tree for found in long_functions(file, text[file])]
    figures |= {"places": len(places), "long": len(long)}
    return {**figures, "in_circles": with_types, "named_in": places, "long_functions": long}


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    root = args.root.resolve()
    text = json.dumps({**house(root), **command_line(root)}, indent=2)
    if args.json is not None:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
