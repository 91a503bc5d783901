"""`python -m recipes.paper_grids`: from a rollout file to numbers, and what it refuses."""

import json
import subprocess
import sys

import pytest

from recipes.paper_grids.__main__ import main
from tests.recipes.paper_grids.test_grid import write

SMALL = "--trunk 1x16 --seeds 1 --steps 4 --batch-rows 4 --evaluations 2 --heldout-prompts 3"


@pytest.fixture
def words(tmp_path, tiny_policy):
    """Arguments that both commands share."""
    rollouts = write(tmp_path / "rollouts")
    where = f"--rollouts {rollouts} --policy {tiny_policy} --out {tmp_path / 'out'}"
    return [*where.split(), *SMALL.split()]


@pytest.fixture
def run(capfd):
    """Runs a command line: exit status, stdout and stderr."""

    def call(*words):
        try:
            main(words)
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()

    return call


@pytest.mark.parametrize("command", ["scaling", "ablation"])
def test_help_has_an_example(run, command):
    status, shown, _ = run(command, "--help")
    assert status == 0 and "Example" in shown


def test_an_ablation_from_rollouts_to_a_figure(run, words, tmp_path):
    sizes = ["--prompts", "4", "--samples", "2", "--parts", "batches"]
    status, shown, problems = run("ablation", *words, *sizes, "--json", str(tmp_path / "x.json"))
    assert status == 0, problems
    figures = json.loads(shown.splitlines()[-1])
    assert figures == json.loads((tmp_path / "x.json").read_text())
    assert figures["runs"] == 2 and set(figures["claims"]) == {
        "shuffled_beats_grouped",
        "grouped_over_shuffled",
    }
    assert "grouped" in shown and "0.00592" in shown  # the paper's, beside ours
    assert (tmp_path / "out" / "ablation_choices.png").stat().st_size > 0
    assert not (tmp_path / "out" / "ablation_gamma.png").exists()


def test_a_dry_run_writes_one_command_per_run(run, words, tmp_path):
    sizes = "--trunks 1x16,1x32 --prompts 2,4 --samples 1,2 --launcher verl --dry-run"
    status, shown, problems = run("scaling", *words, *sizes.split(), "--override", "data.seed=3")
    assert status == 0, problems
    written = json.loads(shown.splitlines()[-1])
    lines = (tmp_path / "out" / "commands.sh").read_text().splitlines()[2:]
    assert written["runs"] == len(lines) == 4
    assert all(line.startswith("recipes/pretrain/run.sh demo ") for line in lines)
    assert all(line.endswith(" data.seed=3") for line in lines)
    assert not (tmp_path / "out" / "cells").exists()  # nothing was run


@pytest.mark.parametrize(
    ("command", "given", "sentence"),
    [
        ("scaling", "--prompts 2,many", "--prompts must be whole numbers"),
        (
            "scaling",
            "--prompts 2,4 --samples 1 --launcher slurm",
            "--launcher must be one of plain, verl",
        ),
        ("scaling", "--prompts 2,4 --samples 1 --dry-run", "belong to --launcher verl"),
        ("scaling", "--prompts 2 --samples 1 --trunks 1x16,1x16", "trunks must be different"),
        ("scaling", "--prompts 2,90 --samples 1", "7 unique prompts, 90 were asked for"),
        ("scaling", "--prompts 2,4 --samples 9", "have fewer than 9 completions"),
        ("ablation", "--prompts 2 --samples 1 --parts gammas", "parts must be of target"),
        ("ablation", "--prompts 2 --samples 1 --gammas 0.9,x", "--gammas must be numbers"),
        ("ablation", "--prompts 2 --samples 1 --gammas 1.5", "gamma must be in"),
        (
            "ablation",
            "--prompts 2 --samples 1 --launcher verl --recipe none",
            "'none' is not in recipes/pretrain, which has demo",
        ),
        (
            "ablation",
            "--prompts 2 --samples 1 --launcher verl --dry-run",
            "leave the part weighting out",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(run, words, command, given, sentence):
    status, _, problems = run(command, *words, *given.split())
    assert status == 2 and sentence in problems and "Traceback" not in problems


@pytest.mark.parametrize("command", ["scaling", "ablation"])
def test_the_old_command_says_where_the_grid_is(command):
    done = subprocess.run(
        [sys.executable, "-m", "lenvm_rl.cli", "eval", command, "--jobs", "2", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"python -m recipes.paper_grids {command}" in " ".join(done.stderr.split())
