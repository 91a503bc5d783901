"""The shipped policy: what a user of the package loads."""

import json
from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lenvm_rl.demo import policy_path, task
from recipes.demo_policy.evaluate_policy import main, report, sample_responses
from recipes.demo_policy.tokenizer import MAX_LENGTH, build_tokenizer


@cache
def sampled():
    problems = [
        problem
        for operands in (2, 4, 6)
        for problem in task.sample_problems(4, seed=77, operands=(operands, operands))
    ]
    return sample_responses(policy_path(), problems, samples=12, seed=5)


def test_config_is_what_the_engines_need():
    config = AutoConfig.from_pretrained(policy_path())
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.head_dim >= 32
    assert config.tie_word_embeddings
    assert config.max_position_embeddings == MAX_LENGTH
    assert sum(file.stat().st_size for file in policy_path().iterdir()) < 5e6
    generation = GenerationConfig.from_pretrained(policy_path())
    assert (generation.temperature, generation.top_k, generation.top_p) == (1.0, 0, 1.0)
    assert (generation.eos_token_id, generation.pad_token_id) == (1, 0)


def test_weights_are_finite_float32():
    model = AutoModelForCausalLM.from_pretrained(policy_path())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 2e6


def test_tokenizer_is_the_one_the_code_builds():
    # AutoTokenizer must not put another class's text splitting in its place.
    shipped, built = AutoTokenizer.from_pretrained(policy_path()), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    assert shipped.chat_template == built.chat_template
    assert (shipped.eos_token_id, shipped.pad_token_id) == (1, 0)
    for problem in task.sample_problems(20, seed=0):
        kwargs = {"add_generation_prompt": True, "return_dict": True}
        ids = shipped.apply_chat_template(task.messages(problem), **kwargs)["input_ids"]
        assert ids == built.apply_chat_template(task.messages(problem), **kwargs)["input_ids"]


def test_greedy_answers_are_right():
    problems = task.sample_problems(32, seed=9, operands=(2, 8))
    found = sample_responses(policy_path(), problems, samples=1, temperature=0.0)
    assert sum(sample.right for sample in found) >= 28


def test_samples_are_graded_vary_and_end():
    figures = report(sampled())
    assert figures["share_truncated"] == 0.0
    assert 0.6 <= figures["accuracy"] <= 1.0
    assert 4 <= figures["min_length"] <= 12
    assert figures["max_length"] <= 480
    assert figures["std_over_mean_within_prompt"] >= 0.4  # 12 samples estimate it roughly
    assert sum(style["share"] > 0 for style in figures["by_style"].values()) >= 3


def test_samples_round_trip_through_text():
    tokenizer = AutoTokenizer.from_pretrained(policy_path())
    for sample in sampled():
        assert len(tokenizer(sample.text)["input_ids"]) == sample.length - 1


def test_seed_fixes_the_samples():
    problems = task.sample_problems(2, seed=1, operands=(2, 3))
    first, second = (
        [s.text for s in sample_responses(policy_path(), problems, samples=4, seed=seed)]
        for seed in (0, 0)
    )
    assert first == second


@pytest.mark.slow
def test_evaluation_command(tmp_path, capsys):
    file = tmp_path / "figures.json"
    arguments = ["--problems", "1", "--samples", "2", "--show", "1", "--json", str(file)]
    main(arguments)
    captured = capsys.readouterr()
    printed = json.loads(captured.out.splitlines()[-1])
    assert printed == json.loads(file.read_text())
    assert printed["samples"] == 22
    assert " | " in captured.err
    with pytest.raises(SystemExit):
        main(["--problems", "many"])
