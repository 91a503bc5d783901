"""house.py: the size figures of a toy tree, worked by hand; the command line as --help shows it."""

import json
import subprocess
import sys

import pytest

from scripts.bench.house import circles, command_line, house, imports, python_files

PYPROJECT = """
[tool.hatch.build.targets.wheel]
packages = ["lenvm_rl", "reward_fns"]
exclude = ["lenvm_rl/making"]
[tool.hatch.build.targets.wheel.force-include]
"recipes" = "lenvm_rl/recipes"
"""
RUN = "\n".join(f"    {name} = {name} + 1" for name in "abcdefg")
SAME_SHAPE = "\n".join(["x = 1", "y = f(x)", "z: int", "del x", "y += 2", "y.w = z[3]"])
TYPER = """
import typer
app = typer.Typer()
group = typer.Typer()
app.add_typer(group, name="eval")

@app.command()
def sample(policy: str, out: str = "x", n: int = 1, fast: bool = False):
    "Sample. Example: `lenvm sample --elsewhere 3`"

@group.command("all")
def all_(out: str = "x", top_k: int = typer.Option(20, "--top-k", "-k", help="see --out")): ...

@group.command()
def control(): ...

main = app
"""


@pytest.fixture
def toy(tmp_path):
    files = {
        "pyproject.toml": PYPROJECT,
        "lenvm_rl/__init__.py": '"""Two\n\nlines."""\n',
        "lenvm_rl/making/policy.py": "x = 1\n",
        "lenvm_rl/evals/__init__.py": "",
        "lenvm_rl/evals/a.py": "from lenvm_rl.evals import b\n",
        "lenvm_rl/evals/b.py": "def f():\n    import lenvm_rl.evals.c\n",
        "lenvm_rl/evals/c.py": "from .a import f\n",
        "lenvm_rl/evals/d.py": "if TYPE_CHECKING:\n    from lenvm_rl.evals.e import f\n",
        "lenvm_rl/evals/e.py": "from lenvm_rl.evals.d import f\n",
        "lenvm_rl/evals/scheduling/evaluate.py": 'NAME = "scheduling"\n',
        "lenvm_rl/cli.py": TYPER,
        "reward_fns/laser.py": f'def laser():\n{RUN}\n    "scheduling of it"\n',
        "recipes/run.py": f'"""Of scheduling."""\n\ndef run():\n\n{RUN}  # scheduling\n',
        "scripts/bench.py": f"from lenvm_rl.evals import scheduling\n{SAME_SHAPE}\n",
        "scripts/long.py": "def long():\n" + "    pass\n" * 90,
        "scripts/other.py": SAME_SHAPE.replace("y", "v").replace("2", "7") + "\n",
        "tests/test_it.py": f"scheduling = 1\n{SAME_SHAPE}\n",
        ".venv/lib/site.py": "x = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_figures_of_a_toy_tree(toy):
    figures = house(toy)
    assert figures["tree_files"] == 15 and figures["tests_files"] == 1
    assert figures["tests_lines"] == 7
    assert figures["installed_files"] == 11, "without making/ and scripts/, with recipes/"
    assert figures["evals_files"] == 7
    assert figures["clones"] == 1, "one run of seven lines, not two of six"
    assert figures["clones_of_shape"] == 1, "seven lines of one shape are no clone, six of five are"
    assert figures["named_in"] == ["scripts/bench.py"]
    assert figures["long_functions"] == ["scripts/long.py:long 91"]


def test_circles_of_imports_and_of_types(toy):
    files = [file for file in python_files(toy) if file.parts[0] == "lenvm_rl"]
    abc = [f"lenvm_rl.evals.{name}" for name in "abc"]
    assert circles(imports(toy, files)) == [abc]
    assert circles(imports(toy, files, types=True)) == [
        abc,
        ["lenvm_rl.evals.d", "lenvm_rl.evals.e"],
    ]


def test_options_are_counted_as_help_lists_them(toy):
    found = command_line(toy)
    assert found["commands"] == 3
    assert (found["options"], found["option_names"], found["arguments"]) == (5, 4, 1)


def test_it_prints_one_object_and_writes_it(toy):
    program = [sys.executable, "scripts/bench/house.py", str(toy), "--json", str(toy / "h.json")]
    ran = subprocess.run(program, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == json.loads((toy / "h.json").read_text())
