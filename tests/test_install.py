"""What an installation promises: versions, recipes by name, and a sentence for what is missing."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lenvm_rl
from lenvm_rl import cli
from tests.cli.command_line import invoke

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lines(*words):
    result = invoke(*words)
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def test_the_version_is_the_packages_and_names_what_it_rests_on():
    assert PROJECT["version"] == lenvm_rl.__version__
    (line,) = lines("--version")
    assert line.startswith(f"lenvm-rl {lenvm_rl.__version__}, Python {sys.version.split()[0]}")
    assert "torch 2" in line and "transformers 5" in line


def test_recipes_are_listed_and_found_by_name():
    listed = lines("recipes")
    assert Path(json.loads(listed[-1])["recipes"]) == ROOT / "recipes"
    assert any("qwen2.5-7b-math" in line for line in listed)
    assert lines("recipes", "pretrain") == [str(ROOT / "recipes" / "pretrain")]
    with pytest.raises(ValueError, match="no recipe 'nix': .*pretrain"):
        invoke("recipes", "nix")


def test_what_an_extra_would_bring_is_said():
    assert cli.what_is_missing(ModuleNotFoundError(name="no_such_package")) is None
    sentence = cli.what_is_missing(ModuleNotFoundError(name="scipy.stats"))
    assert "'scipy.stats' is not installed" in sentence and 'pip install ".[evals]"' in sentence
    assert ".[evals]" in cli.what_is_missing(ModuleNotFoundError(name="math_verify"))


def test_an_extra_that_leaves_a_package_out_on_this_python_says_so(monkeypatch):
    line = "verl<0.9.2,>=0.9.1; python_version < '3.13' and extra == 'verl'"
    monkeypatch.setattr(cli, "requires", lambda name: [line])
    sentence = cli.what_is_missing(ModuleNotFoundError(name="verl.trainer"))
    assert "where python_version < '3.13'" in sentence and "this is Python 3." in sentence


@pytest.mark.parametrize("package", ["tyro", "rich", "transformers"])
def test_a_bare_install_answers_in_a_sentence(package):
    hide = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "sys.argv = ['lenvm', 'predict', '--lenvm', 'demo', '--text', 'x']\n"
        "from lenvm_rl.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"the package {package!r} is not installed" in done.stderr
    assert ".[base]" in done.stderr and "Traceback" not in done.stderr


def test_metadata_says_where_the_project_lives_and_what_it_was_tested_with():
    assert PROJECT["urls"]["Paper"].startswith("https://arxiv.org/abs/")
    assert "Typing :: Typed" in PROJECT["classifiers"]
    for package in ("lenvm_rl", "reward_fns"):
        assert (ROOT / package / "py.typed").is_file()
    wanted = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    moving = [line for line in wanted if line.startswith(("torch", "transformers", "vllm", "verl"))]
    assert len(moving) == 4
    for line in moving:
        assert "<" in line and ">=" in line, f"{line} names no tested range"


def test_no_sentence_tells_to_install_by_a_name_that_no_registry_holds():
    files = [*(ROOT / "lenvm_rl").rglob("*.py"), *(ROOT / "recipes").rglob("*.md")]
    for file in files:
        assert "pip install 'lenvm-rl" not in file.read_text(), file
        assert 'pip install "lenvm-rl' not in file.read_text(), file
