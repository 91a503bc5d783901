"""Every `lenvm ...` that a page, a script, a recipe or a docstring shows is a command of today."""

import re
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

from lenvm_rl import cli
from lenvm_rl.cli.table import RENAMED
from scripts.check_extras import COMMANDS

ROOT = Path(__file__).parents[2]
LEFT_OUT = {"CHANGELOG.md", "lenvm_rl/cli/table.py"}  # what was, and what became of it
QUOTED = re.compile(r"`+(lenvm [a-z-][^`]+)`+")
LINE = re.compile(
    r"^[ \t]*(?:[A-Z_]+=\S+ |\$ |# +|exec )*(lenvm [a-z][a-z-]+ (?:.*\\\n)*.*)$", re.MULTILINE
)
OPTION = re.compile(r"(?<!\S)(--?[a-z][\w-]*)")


def pages():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    endings = (".md", ".py", ".sh", ".yaml", ".json")
    names = [name for name in listed.stdout.split() if name.endswith(endings)]
    names = [name for name in names if name not in LEFT_OUT and not name.startswith("tests/")]
    return [name for name in names if (ROOT / name).is_file()]


def shown(page):
    """The command lines of a page, continuations joined; in Python those in backticks."""
    text = (ROOT / page).read_text()
    found = QUOTED.findall(text) + (LINE.findall(text) if not page.endswith(".py") else [])
    found += re.findall(r'"command": "(lenvm [^"]+)"', text)
    return {" ".join(line.replace("\\\n", " ").split()) for line in found}


@lru_cache
def options(name):
    return {"--help", "-h", *cli.options_of_command(name)}


def wrong(line):
    """What is wrong with a command line; empty if nothing is."""
    words = re.split(r" (?:\||&&|>|2>|;) ", line)[0].split()
    words = [word.strip(".,;:)\"'") for word in words]
    taken = [word for word in words[1:3] if re.fullmatch(r"[a-z][a-z-]*", word)]
    names = [" ".join(taken[:count]) for count in (2, 1)]
    name = next((name for name in names if name in cli.COMMANDS), None)
    if name is None:
        known = names[1] in cli.GROUPS or words[1] in ("--help", "--version")
        return "" if known else "no such command"
    given = OPTION.findall(" ".join(words))
    unknown = [option for option in given if option not in options(name)]
    if cli.COMMANDS[name].passes_on:
        unknown = [option for option in unknown if option in RENAMED[name]]
    return f"no option {unknown}" if unknown else ""


@pytest.mark.parametrize("page", [p for p in pages() if "lenvm " in (ROOT / p).read_text()])
def test_its_commands_are_those_of_today(page):
    found = {line: wrong(line) for line in shown(page)}
    assert not {line: reason for line, reason in found.items() if reason}


def test_commands_that_check_the_extras_are_those_of_today():
    lines = {" ".join(["lenvm", *words]) for asked in COMMANDS.values() for words in asked}
    assert not {line: wrong(line) for line in lines if wrong(line)}


@pytest.mark.parametrize("page", [page for page in pages() if page.endswith(".md")])
def test_links_lead_to_files_of_the_tree(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / page).read_text())
    inside = [link for link in links if not re.match(r"\w+:", link)]
    assert [link for link in inside if not ((ROOT / page).parent / link).exists()] == []
