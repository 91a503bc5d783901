"""The LenVM that ships with the package knows its policy and tells short answers from long ones."""

import pytest
import torch

from lenvm_rl.demo import lenvm_path, policy_path, task
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.model import LengthValueModel, check_tokenizer, load_tokenizer
from lenvm_rl.sampling.encoding import encode_prompt
from tests.cli.command_line import invoke


def test_it_belongs_to_the_shipped_policy_and_says_so_without_a_path():
    model = LengthValueModel.from_pretrained(lenvm_path())
    check_tokenizer(model.config, load_tokenizer(policy_path()))
    assert 0.98 < model.config.require_gamma() < 0.995
    assert "/" not in (lenvm_path() / "config.json").read_text()


def test_before_the_first_token_it_expects_more_of_harder_problems():
    model = LengthValueModel.from_pretrained(lenvm_path()).eval()
    tokenizer = load_tokenizer(policy_path())
    expected = {}
    for prompt in demo_prompts(96, seed=5):
        ids = torch.tensor([encode_prompt(tokenizer, prompt)])
        with torch.no_grad():
            z = model.length_logits(ids)[0, -1].item()
        expected.setdefault(prompt.data_source.removeprefix("demo/"), []).append(z)
    assert set(expected) == {*task.LEVELS, "no-thinking"}
    assert max(expected["no-thinking"]) < min(sum((expected[level] for level in task.LEVELS), []))
    easy, middling, hard = (torch.tensor(expected[level]) for level in task.LEVELS)
    assert easy.mean() < middling.mean() < hard.mean()
    assert easy.max() < hard.min()


def test_a_directory_without_a_lenvm_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=f"--lenvm {tmp_path} holds no LenVM"):
        invoke("predict", "--lenvm", tmp_path, "--text", "x")
