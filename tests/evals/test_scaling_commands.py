"""`lenvm eval scaling | ablation`: from a rollout file to numbers, and what they refuse."""

import json

import pytest

from tests.command_line import invoke
from tests.evals.test_grid import write

SMALL = "--trunk 1x16 --seeds 1 --steps 4 --batch-rows 4 --evaluations 2 --heldout-prompts 3"


@pytest.fixture
def words(tmp_path, tiny_policy):
    """Arguments that both commands share."""
    rollouts = write(tmp_path / "rollouts")
    where = f"--rollouts {rollouts} --policy {tiny_policy} --out {tmp_path / 'out'}"
    return [*where.split(), *SMALL.split()]


def run(*words):
    return invoke("eval", *words)


@pytest.mark.parametrize("command", ["scaling", "ablation"])
def test_help_has_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and "Example" in result.stdout


def test_an_ablation_from_rollouts_to_a_figure(words, tmp_path):
    sizes = ["--prompts", "4", "--samples", "2", "--parts", "batches"]
    result = run("ablation", *words, *sizes, "--json", str(tmp_path / "figures.json"))
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    assert figures["runs"] == 2 and set(figures["claims"]) == {
        "shuffled_beats_grouped",
        "grouped_over_shuffled",
    }
    assert "grouped" in result.stdout and "0.00592" in result.stdout  # the paper's, beside ours
    assert (tmp_path / "out" / "ablation_choices.png").stat().st_size > 0
    assert not (tmp_path / "out" / "ablation_gamma.png").exists()


def test_a_dry_run_writes_one_command_per_run(words, tmp_path):
    sizes = [
        "--trunks",
        "1x16,1x32",
        "--prompts",
        "2,4",
        "--samples",
        "1,2",
        "--launcher",
        "verl",
        "--dry-run",
    ]
    result = run("scaling", *words, *sizes, "--override", "data.seed=3")
    assert result.exit_code == 0, result.stderr
    written = json.loads(result.stdout.splitlines()[-1])
    lines = (tmp_path / "out" / "commands.sh").read_text().splitlines()[2:]
    assert written["runs"] == len(lines) == 4
    assert all(line.startswith("recipes/pretrain/run.sh demo ") for line in lines)
    assert all(line.endswith(" data.seed=3") for line in lines)
    assert not (tmp_path / "out" / "cells").exists()  # nothing was run


@pytest.mark.parametrize(
    ("command", "given", "sentence"),
    [
        ("scaling", "--prompts 2,many", "--prompts must be whole numbers"),
        ("scaling", "--prompts 2,4 --samples 1 --launcher slurm", "must be plain or verl"),
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
def test_what_cannot_be_is_refused_in_a_sentence(words, command, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(command, *words, *given.split())
