"""Options from signatures: types, defaults, help, and what mistakes are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from lenvm_rl import cli
from lenvm_rl.cli import options, table
from lenvm_rl.cli.table import Command
from tests.cli.command_line import invoke


@dataclass(frozen=True, kw_only=True)
class Server:
    slots: int = 16
    """Requests that run at a time."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is simulated."""

    loads: Sequence[float] = (0.8, 1.1)
    """Offered load."""
    names: tuple[str, ...] | None = None
    server: Server = Server()
    hook: Any = None

    def __post_init__(self) -> None:
        if not self.loads:
            raise ValueError("loads must not be empty")


def work(
    source: str,
    *,
    out: str | Path,
    settings: Settings = Settings(),  # noqa: B008
    order: Literal["up", "down"] = "up",
    exclude: list[Path] | None = None,
    limit: int | None = None,
    n: int = 8,
    fast: bool = False,
    progress: bool = False,
) -> None:
    """Work on it.

    Args:
        source: what to work on.
        out: where it goes.
        order: of the work.
    """


def parsed(*words, **command):
    command = Command("work", "", by_place=("source",), **command)
    return options.parse(work, words, "lenvm work", command)


def test_values_reach_the_function_and_its_settings():
    given, json_file = parsed(
        *("a.txt", "--out", "x", "--loads", "-1,.5", "--names", "a, b", "--slots", "2", "--fast"),
        *("--exclude", "p", "--exclude", "q", "--limit", "3", "-n", "2", "--json", "f.json"),
    )
    assert json_file == Path("f.json")
    assert given == {
        "source": "a.txt",
        "out": Path("x"),
        "settings": Settings(loads=(-1.0, 0.5), names=("a", "b"), server=Server(slots=2)),
        "order": "up",
        "exclude": [Path("p"), Path("q")],
        "limit": 3,
        "n": 2,
        "fast": True,
        "progress": True,
    }


def test_what_is_left_out_keeps_its_default():
    given, json_file = parsed("a", "--out", "x")
    assert given["settings"] == Settings() and given["n"] == 8 and given["limit"] is None
    assert json_file is None and not given["exclude"]


def test_help_says_types_defaults_and_docstrings(capsys):
    with pytest.raises(SystemExit) as end:
        parsed("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and "Work on it." in shown and "--hook" not in shown
    assert "Offered load. (default: 0.8,1.1)" in shown and "What to work on. (required)" in shown
    assert "--order up|down Of the work. (default: up)" in shown
    assert "Completions per prompt. (default: 8)" in shown and "--progress" not in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--limit three", "--limit must be a whole number, got 'three'"),
        ("--limit 0", "--limit must be at least 1, got 0"),
        ("-n 0", "-n must be at least 1, got 0"),
        ("--loads 1,much", "--loads must be numbers with commas between, got '1,much'"),
        ("--slots .5", "--slots must be a whole number"),
        ("--order side", "--order must be one of up, down, got 'side'"),
    ],
)
def test_a_bad_value_is_a_sentence(words, sentence):
    with pytest.raises(options.Mistake, match=sentence):
        parsed("a", "--out", "x", *words.split())


def test_settings_that_refuse_say_so_themselves():
    with pytest.raises(ValueError, match="loads must not be empty"):
        parsed("a", "--out", "x", "--loads", ",")


def test_an_unknown_option_tells_the_nearest(capsys):
    with pytest.raises(SystemExit) as end:
        parsed("a", "--out", "x", "--limti", "3")
    assert end.value.code == 2 and "--limit" in capsys.readouterr().err


def test_what_is_passed_on():
    def work(out: Path, *, extra: Sequence[str] = ()) -> None: ...

    given, _ = options.parse(
        work, ["--out", "x", "--dtype", "half"], "lenvm work", Command("", "", passes_on=True)
    )
    assert given == {"out": Path("x"), "extra": ["--dtype", "half"]}


@pytest.mark.parametrize("command", table.RENAMED)
def test_old_options_name_a_new_one_that_is_there(command):
    there = cli.options_of_command(command)
    for old, new in table.RENAMED[command].items():
        assert old not in there, f"{old} of {command} is an option of today"
        assert not new.startswith("-") or new.split()[0] in there, f"{new} is no option"
        with pytest.raises(ValueError, match=f"{old} of `lenvm {command}` .*{new}"):
            invoke(*command.split(), old, "x")


@pytest.mark.parametrize("command", table.GONE)
def test_old_commands_name_the_new_one(command):
    with pytest.raises(ValueError, match=f"`lenvm {command}` is now `"):
        invoke(*command.split(), "--out", "x")


def test_an_unknown_command_tells_the_nearest():
    with pytest.raises(ValueError, match="do you mean `lenvm predict`"):
        invoke("predikt")
    with pytest.raises(ValueError, match="do you mean `lenvm eval scheduling`"):
        invoke("eval", "schedulling")
    with pytest.raises(ValueError, match="`lenvm eval` takes a command, got --out"):
        invoke("eval", "--out", "x")


def test_help_lists_all_commands_and_imports_nothing_heavy():
    import subprocess
    import sys

    program = (
        "import sys\nfrom lenvm_rl.cli import call\ncall(['--help'])\n"
        "assert not {'torch', 'transformers', 'tyro', 'pyarrow'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert all(f"│ {name} " in shown.stdout for name in [*cli.COMMANDS, "eval"] if " " not in name)
    listed = invoke("eval").stdout
    assert all(name.removeprefix("eval ") in listed for name in cli.COMMANDS if "eval " in name)
