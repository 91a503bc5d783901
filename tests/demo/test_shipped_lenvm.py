"""The LenVM that ships with the package knows its policy and tells short answers from long ones."""

import pytest
import torch

from lenvm_rl.demo import lenvm_path, policy_path
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.model import LengthValueModel, check_tokenizer, load_tokenizer
from lenvm_rl.sampling.encoding import encode_prompt
from tests.cli.command_line import invoke


def test_it_belongs_to_the_shipped_policy_and_says_so_without_a_path():
    model = LengthValueModel.from_pretrained(lenvm_path())
    check_tokenizer(model.config, load_tokenizer(policy_path()))
    assert 0.98 < model.config.require_gamma() < 0.99
    assert "/" not in (lenvm_path() / "config.json").read_text()


def test_before_the_first_token_it_expects_more_of_longer_problems():
    model = LengthValueModel.from_pretrained(lenvm_path()).eval()
    tokenizer = load_tokenizer(policy_path())
    prompts = demo_prompts(64, seed=5)
    with torch.no_grad():
        expected = [
            model.length_logits(torch.tensor([encode_prompt(tokenizer, p)]))[0, -1].item()
            for p in prompts
        ]
    operands = [int(p.data_source.removeprefix("demo/").partition("-")[0]) for p in prompts]
    short = [z for z, n in zip(expected, operands, strict=True) if n <= 3]
    long = [z for z, n in zip(expected, operands, strict=True) if n >= 8]
    assert len(short) > 5 and len(long) > 5 and max(short) < min(long)


def test_a_directory_without_a_lenvm_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=f"--lenvm {tmp_path} holds no LenVM"):
        invoke("predict", "--lenvm", tmp_path, "--text", "x")
