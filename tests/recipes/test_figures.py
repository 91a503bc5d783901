"""The ledger of figures: every entry whole, its command runnable, a missed bar explained."""

import json
import re
import shlex
from datetime import date
from pathlib import Path

import pytest

from lenvm_rl.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FIGURES = json.loads((ROOT / "recipes" / "figures.json").read_text())
README = (ROOT / "README.md").read_text()
KEYS = {"id", "what", "value", "unit", "bar", "ok", "command", "date", "machine", "seeds"}
IN_TREE = re.compile(r"^(scripts|recipes|tests|lenvm_rl)/")


def test_ids_are_unique_and_name_an_issue_and_a_figure():
    ids = [figure["id"] for figure in FIGURES]
    assert len(set(ids)) == len(ids)
    assert [i for i in ids if not re.fullmatch(r"[a-z]+\.\d+[a-z]?", i)] == []


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure["id"])
def test_an_entry_is_whole(figure):
    assert set(figure) - {"reason"} == KEYS
    assert isinstance(figure["ok"], bool) and date.fromisoformat(figure["date"])
    assert figure["ok"] or figure.get("reason"), "a missed bar says why"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure["id"])
def test_its_command_exists(figure):
    words = [w for w in shlex.split(figure["command"]) if not re.fullmatch(r"\w+=\S*", w)]
    files = [w.split("::")[0] for w in words if IN_TREE.match(w)]
    if words[1:3] == ["-m", "scripts.bench"]:
        files.append(f"scripts/bench/{words[3]}.py")
    elif words[1:2] == ["-m"] and words[2].startswith("recipes."):
        module = words[2].replace(".", "/")
        files.append(f"{module}/__main__.py" if (ROOT / module).is_dir() else f"{module}.py")
    assert [f for f in files if not (ROOT / f).exists()] == []
    if words[0] == "lenvm":
        name = " ".join(words[1:3] if words[1] == "eval" else words[1:2])
        assert name in COMMANDS, f"lenvm has no command {name}"
    else:
        assert files, f"{figure['command']!r} names no file of the tree and no lenvm command"


def test_numbers_of_the_readme_are_those_of_the_ledger():
    rows = re.findall(r"^\|.*\| ([^|]+) \| ([a-z]+\.\d+[a-z]?) \|$", README, re.MULTILINE)
    assert len(rows) > 5
    known = {figure["id"]: str(figure["value"]) for figure in FIGURES}
    assert [(value, name) for value, name in rows if known[name] not in value] == []
