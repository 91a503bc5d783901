"""The shipped policy: what a user of the package loads, and what it can do."""

import json
from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lenvm_rl.demo import policy_path, task
from lenvm_rl.rollouts.text import prompt_ids
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request
from recipes.demo_policy import evaluate_policy
from recipes.demo_policy.evaluate_policy import WAYS, Policy, main, summary
from recipes.demo_policy.tokenizer import MAX_LENGTH, build_tokenizer

SAMPLES = 8


@cache
def policy():
    return Policy(policy_path())


@cache
def sampled():
    """`SAMPLES` consecutive answers to each of 24 problems, at temperature 1."""
    problems = task.sample_problems(24, seed=77)
    return policy().answer([p for p in problems for _ in range(SAMPLES)], seed=5)


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
    assert generation.max_new_tokens == evaluate_policy.MAX_TOKENS  # a server's limit, if unasked


def test_weights_are_finite_float32():
    model = AutoModelForCausalLM.from_pretrained(policy_path())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 2e6


def test_tokenizer_is_the_one_the_code_builds():
    # AutoTokenizer must not put another class's text splitting in its place.
    shipped, built = AutoTokenizer.from_pretrained(policy_path()), build_tokenizer()
    assert json.loads(shipped.backend_tokenizer.to_str()) == json.loads(
        built.backend_tokenizer.to_str()
    )
    assert shipped.chat_template == built.chat_template
    assert (shipped.eos_token_id, shipped.pad_token_id) == (1, 0)
    assert not {"<think>", "</think>"} & set(shipped.all_special_tokens)


def test_samples_vary_and_end():
    lengths = torch.tensor([float(answer.length) for answer in sampled()]).view(-1, SAMPLES)
    assert sum(not answer.finished for answer in sampled()) <= 2
    assert 7 <= lengths.min() <= 10 and 100 < lengths.max() < MAX_LENGTH
    assert (lengths.std(1) / lengths.mean(1)).mean() >= 0.5
    styles = {task.style(answer.text) for answer in sampled()}
    assert styles == set(task.STYLES)
    assert 0.3 < summary(sampled())["accuracy"] < 0.95


def test_samples_think_and_round_trip_through_text():
    tokenizer = policy().tokenizer
    for answer in sampled():
        assert len(tokenizer(answer.text)["input_ids"]) == answer.length - answer.finished
        if answer.finished:
            assert answer.text.startswith("<think>")
            assert answer.text.partition("</think>")[2].startswith("the answer is ")


def test_asked_without_thinking_it_answers_at_once():
    tokenizer = policy().tokenizer
    problems = task.sample_problems(16, seed=3)
    asked = [prompt_ids(tokenizer, task.messages(p, thinking=False)) for p in problems]
    requests = [Request(ids, max_tokens=60, temperature=0.0) for ids in asked]
    sampler = ContinuousSampler(policy().model, eos_token_ids=tokenizer.eos_token_id)
    texts = [tokenizer.decode(c.token_ids) for c in sampler.generate(requests)]
    assert all(text.startswith("<think></think>the answer is ") for text in texts)


def test_what_length_buys():
    """The smallest sums are right at once, others are not, and digit by digit more of them are."""
    smallest = [task.Problem((a, b)) for a in (2, 5, 9) for b in (3, 4, 8)]
    at_once = policy().answer(smallest, ["<think></think>"] * 9, temperature=0.0)
    assert summary(at_once)["accuracy"] > 0.8
    found = policy().by_style(task.sample_problems(24, seed=9, digits=(3, 4)))
    assert list(found) == list(WAYS)
    accuracy = {way: summary(answers)["accuracy"] for way, answers in found.items()}
    length = {way: summary(answers)["length"] for way, answers in found.items()}
    assert accuracy["direct"] + 0.3 < accuracy["columns"]
    assert accuracy["short"] < accuracy["columns"]
    assert length["direct"] < length["short"] < length["columns"] < length["columns, checked"]


def test_seed_fixes_the_samples():
    problems = task.sample_problems(2, seed=1) * 4
    first, second = (
        [answer.text for answer in policy().answer(problems, seed=seed)] for seed in (0, 0)
    )
    assert first == second


@pytest.mark.slow
def test_evaluation_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_policy, "MAJORITY", 3)
    main(["--problems", "8", "--out", str(tmp_path)])
    figures = json.loads((tmp_path / "accuracy.json").read_text())
    assert list(figures["families"]) == list(task.FAMILIES)
    for found in figures["families"].values():
        assert list(found["by_style"]) == list(WAYS)
        assert sum(found["shortest_correct"].values()) == pytest.approx(1)
        assert sum(found["sampled"]["styles"].values()) == pytest.approx(1)
        assert 0 <= found["by_temperature"]["1"]["all"]["majority"] <= 1
    assert (tmp_path / "accuracy.png").stat().st_size > 1000
    assert "products: accuracy in %" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--problems", "many"])
