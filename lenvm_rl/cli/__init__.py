"""`lenvm`: sample completions, look at their lengths, make, train, read and check value models.

A command is a function of the library or of `commands`, named in `table`; its options are its
parameters (`options`), and common words mean the same everywhere (`words`). Nothing heavy is
imported before a command runs. The last line of a command is one JSON object, which --json FILE
keeps as well. A mistake of the user's, or a package that is not installed, ends with a sentence
and exit status 2; work that failed in part, with exit status 1.

    table       commands, old names
    options     options of a function, by tyro
    words       the vocabulary
    commands    commands that put several functions together
    sample      lenvm sample, by every engine
    predictor   lenvm predictor, lenvm route
    eval_all    lenvm eval all
    graders     which grader judges these prompts
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from lenvm_rl.cli.table import COMMANDS, GONE, GROUPS, RENAMED, Answer, imported

__all__ = ["COMMANDS", "GROUPS", "call", "main", "options_of_command"]


def main() -> None:
    """Entry point of the console script."""
    try:
        status = call(sys.argv[1:])
    except ModuleNotFoundError as error:
        sentence = what_is_missing(error)
        if sentence is None:
            raise
        status = _refuse(sentence)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        status = _refuse(str(error))
    if status:
        sys.exit(status)


def call(argv: Sequence[str]) -> int:
    """Run a command line; returns its exit status.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: mistakes of the user's, in a sentence.
        SystemExit: help was shown (status 0), or the options are not the command's (status 2).
    """
    words = list(argv)
    if words[:1] == ["--version"]:
        print(versions())
        return 0
    name, rest = _command_of(words)
    if name not in COMMANDS:
        if rest not in ([], ["--help"], ["-h"]):
            program = f"lenvm {name}".strip()
            raise ValueError(f"`{program}` takes a command, got {rest[0]}: `{program} --help`.")
        _show_commands(name)
        return 0 if rest else 2
    command = COMMANDS[name]
    _check_old_options(name, rest)
    from rich.console import Console  # before transformers, which hides what it misses

    from lenvm_rl.cli.options import Mistake, parse

    function = imported(command.function)
    try:
        arguments, json_file = parse(function, rest, f"lenvm {name}", command)
    except Mistake as mistake:
        raise ValueError(str(mistake)) from None
    answer = function(**arguments)
    if not isinstance(answer, Answer):
        figures = answer if isinstance(answer, dict) else answer.to_dict()
        answer = Answer(figures, imported(command.view)(answer) if command.view else "")
    return _show(answer, json_file, Console(), Console(stderr=True))


def options_of_command(name: str) -> list[str]:
    """The options of a command as they are written, `--json` among them."""
    from lenvm_rl.cli.options import options_of

    options = options_of(imported(COMMANDS[name].function))
    return [option.flag for option in options.values()] + ["--json"]


def _command_of(words: list[str]) -> tuple[str, list[str]]:
    """The command's name and the words after it; a group's name where one is named, or none.

    Raises:
        ValueError: no such command.
    """
    taken = [word for word in words[:2] if not word.startswith("-")]
    for count in (2, 1):
        name = " ".join(taken[:count])
        if len(taken) >= count and name in COMMANDS:
            return name, words[count:]
        if len(taken) >= count and name in GONE:
            raise ValueError(f"`lenvm {name}` is now {GONE[name]}.")
    if " ".join(taken) in GROUPS:
        return " ".join(taken), words[len(taken) :]
    name = " ".join(taken) if taken[0] in GROUPS else taken[0]
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"do you mean `lenvm {near[0]}`? " if near else ""
    raise ValueError(f"there is no command `lenvm {name}`: {hint}`lenvm --help` lists them.")


def _check_old_options(name: str, words: Sequence[str]) -> None:
    """Raise ValueError for an option of version 0.1 that has another name now."""
    for word in words:
        new = RENAMED.get(name, {}).get(word.partition("=")[0])
        if new is not None:
            said = new if " " in new and not new.startswith("-") else f"is now {new}"
            raise ValueError(f"{word.partition('=')[0]} of `lenvm {name}` {said}.")


def _show_commands(group: str) -> None:
    """`lenvm --help`, or that of a group."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    console = Console(highlight=False)
    start = f"{group} " if group else ""
    console.print(f"usage: lenvm {start}COMMAND [OPTIONS]\n\n{GROUPS[group]}\n")
    listed = {name: command.help for name, command in COMMANDS.items()}
    if not group:
        listed = {name: text for name, text in listed.items() if " " not in name} | GROUPS
        del listed[""]
    table = Table.grid(padding=(0, 2))
    for name, text in listed.items():
        if name.startswith(start):
            table.add_row(name.removeprefix(start), text)
    console.print(Panel(table, title="commands", title_align="left"))
    console.print(f"lenvm {start}COMMAND --help shows options and examples.", markup=False)


def _show(answer: Answer, json_file: Path | None, console: Any, errors: Any) -> int:
    """Print what a command has to say; returns the exit status."""
    if answer.screen:
        plain = isinstance(answer.screen, str)  # rows and paths may hold square brackets
        console.print(answer.screen, markup=not plain, highlight=not plain, soft_wrap=plain)
    if answer.figures:
        text = json.dumps(answer.figures, allow_nan=False)
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(text + "\n")
        if not answer.silent:
            print(text)
    for line in filter(None, (*answer.warnings, answer.complaint)):
        errors.print(line, markup=False, highlight=False, soft_wrap=True)
    return 1 if answer.complaint else 0


def versions() -> str:
    """The version of this package and of those that it rests on, on one line."""
    from lenvm_rl import __version__

    found = [f"lenvm-rl {__version__}", f"Python {sys.version.split()[0]}"]
    for name in ("torch", "transformers", "verl", "vllm"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def _refuse(sentence: str) -> int:
    try:
        from rich.console import Console
        from rich.markup import escape
    except ModuleNotFoundError:
        print("error:", sentence, file=sys.stderr)
    else:
        said = escape(sentence)  # a row or a path may hold square brackets
        Console(stderr=True).print("[bold red]error[/]:", said, highlight=False, soft_wrap=True)
    return 2


def what_is_missing(error: ModuleNotFoundError) -> str | None:
    """The sentence for a package that one of the extras names; None for any other.

    A package that an extra leaves out on this Python (verl from 3.13 on) is said to be so.
    """
    wanted = _canonical((error.name or "").partition(".")[0])
    extras = _extras_of(wanted)
    if not extras:
        return None
    extra, marker = extras[0]
    if "python_version" in marker:
        import sys

        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        return (
            f"the package {error.name!r} is not installed; the extra {extra!r} brings it where "
            f"{marker}, and this is Python {running}."
        )
    return (
        f"the package {error.name!r} is not installed; the extra {extra!r} brings it: "
        f'pip install ".[{extra}]" in a clone of lenvm-rl.'
    )


def _extras_of(package: str) -> list[tuple[str, str]]:
    """(extra, the rest of its marker) of every extra that names `package`, in their order."""
    try:
        lines = requires("lenvm-rl") or []
    except PackageNotFoundError:  # run from a folder, never installed
        return []
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        name = requirement
        for sign in "[<>=!~ (":
            name = name.partition(sign)[0]
        if _canonical(name) == package and "extra ==" in marker:
            extra = marker.partition("extra ==")[2].strip().split()[0].strip("\"')")
            rest = marker.replace(f"extra == '{extra}'", "").replace(f'extra == "{extra}"', "")
            found.append((extra, rest.strip().removeprefix("and").removesuffix("and").strip()))
    return found


def _canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")
