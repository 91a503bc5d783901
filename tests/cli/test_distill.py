"""`lenvm distill`, whole in tiny: what it writes, and directories that hold no LenVM."""

import json

import pytest
import torch

from lenvm_rl.model import LengthValueModel
from tests.cli.command_line import invoke, run
from tests.cli.test_commands import policy, rollouts  # noqa: F401 (fixtures)


def test_a_head_is_distilled_and_written(policy, rollouts, tmp_path):  # noqa: F811
    teacher = tmp_path / "lenvm"
    run("init", "--policy", policy, "--gamma", 0.97, "--out", teacher)
    given = ["distill", "--lenvm", teacher, "--rollouts", rollouts, "--policy", policy]
    small = ["--batch-size", 4, "--states", 2, "--top-k", 4]
    figures = run(*given, *small, "--steps", 3, "--out", tmp_path / "head")
    assert figures["steps"] == 3 and not figures["held_out"]
    assert figures["after"] != figures["before"]
    head = LengthValueModel.from_pretrained(tmp_path / "head")
    assert head.config.head == "candidate" and head.config.gamma == 0.97
    exact = LengthValueModel.from_pretrained(teacher)
    for ours, theirs in zip(head.model.parameters(), exact.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    written = tmp_path / "figures.json"
    again = run(
        *given, *small, "--student", tmp_path / "head", "--steps", 1, "--val-rollouts", rollouts,
        "--out", tmp_path / "more", "--json", written,
    )  # fmt: skip
    assert again["held_out"] and json.loads(written.read_text()) == again


@pytest.mark.parametrize("option", ["--lenvm", "--student"])
def test_a_directory_without_a_lenvm_is_refused(option, policy, rollouts, tmp_path):  # noqa: F811
    teacher = tmp_path / "lenvm"
    run("init", "--policy", policy, "--gamma", 0.97, "--out", teacher)
    words = ["distill", "--lenvm", teacher, "--rollouts", rollouts, "--out", tmp_path / "x"]
    words += [option, tmp_path / "nowhere"]
    with pytest.raises(ValueError, match=f"{option} .*nowhere holds no LenVM"):
        invoke(*words)
