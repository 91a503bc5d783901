"""`lenvm eval scheduling` and `length-tokens` from directories on disk, and what they refuse."""

import json

import pytest
import torch

from lenvm_rl.model import LengthValueModel, describe_policy, load_tokenizer, save_checkpoint
from lenvm_rl.sampling.transformers.engine import sample_to_file
from tests.cli.command_line import run
from tests.sampling.test_sampling import SETTINGS, prompts


@pytest.fixture(scope="module")
def files(tiny_policy, tmp_path_factory):
    """A LenVM of the tiny policy, one of another policy, and rollouts of the former."""
    root = tmp_path_factory.mktemp("commands")
    sample_to_file(tiny_policy, prompts(8), root / "rollouts", **SETTINGS)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tiny_policy)
    for name in (str(tiny_policy), "other"):
        model = LengthValueModel.from_policy(
            tiny_policy, gamma=0.9, policy=describe_policy(name, tokenizer)
        )
        save_checkpoint(model, tokenizer, root / ("other" if name == "other" else "lenvm"))
    return root


def test_scheduling(files, tmp_path):
    words = ["eval", "scheduling", "--lenvm", files / "lenvm", "--rollouts", files / "rollouts"]
    words += ["--train", files / "rollouts", "--requests", 40, "--seeds", 2, "--loads", "1.2"]
    words += ["--slots", 2, "--out", tmp_path / "out", "--json", tmp_path / "line.json"]
    figures = run(*words)
    assert figures["completions"] == 32 and figures["slots"] == 2
    assert figures["share"]["1.2"]["predicted-true"] == 1.0
    assert {"linear", "lenvm", "prompt"} == set(figures["predictors"])
    assert json.loads((tmp_path / "line.json").read_text()) == figures
    assert (tmp_path / "out" / "scheduling.png").stat().st_size > 1000


def test_length_tokens(files, tmp_path):
    words = ["eval", "length-tokens", "--lenvm", files / "lenvm", "--rollouts", files / "rollouts"]
    figures = run(*words, "--min-count", 2, "--limit", 20, "--out", tmp_path / "out")
    assert figures["completions"] == 20 and figures["threshold"] == 0.01
    page = (tmp_path / "out" / "length_tokens.html").read_text()
    assert "20 completions" in page
    assert set(figures["top"]) == {
        f"{sign}_by_{by}" for sign in ("positive", "negative") for by in ("mean", "count")
    }


@pytest.mark.parametrize("command", ["scheduling", "length-tokens", "prediction"])
def test_rollouts_of_another_policy_are_refused(files, tmp_path, command):
    words = ["eval", command, "--lenvm", files / "other", "--rollouts", files / "rollouts"]
    with pytest.raises(ValueError, match="lengths of 'other': another policy ends elsewhere"):
        run(*words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_loads_that_are_no_numbers_are_refused(files, tmp_path):
    words = ["eval", "scheduling", "--lenvm", files / "lenvm", "--rollouts", files / "rollouts"]
    with pytest.raises(ValueError, match="--loads must be numbers with commas between, got 'much'"):
        run(*words, "--loads", "much", "--out", tmp_path / "out")
