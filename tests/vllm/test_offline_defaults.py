"""What does an engine start with where nothing was said?"""

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")

import vllm
from transformers import AutoConfig
from vllm.platforms import current_platform

from lenvm_rl.demo import policy_path
from lenvm_rl.model import load_tokenizer
from lenvm_rl.sampling.run import Task
from lenvm_rl.vllm import room as room_module
from lenvm_rl.vllm.offline import start_llm
from lenvm_rl.vllm.room import cpu_defaults, room_of


def started(monkeypatch, cpu, policy="policy", **settings):
    """Arguments that `LLM` gets."""
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: cpu)
    monkeypatch.setattr(vllm, "LLM", lambda *args, **given: given)
    monkeypatch.setattr(os, "environ", {"VLLM_CPU_OMP_THREADS_BIND": "0-3"})
    return start_llm(policy, seed=3, **settings)


GIB = 2**30


@pytest.fixture(autouse=True)
def eight_gib_free(monkeypatch):
    monkeypatch.setattr(room_module, "available_memory", lambda device: 8 * GIB)


def test_a_cpu_engine_leaves_memory_to_others(monkeypatch):
    given = started(monkeypatch, cpu=True)
    assert given == {"kv_cache_memory_bytes": 2 * GIB, "enforce_eager": True, "seed": 3}
    given = started(monkeypatch, cpu=True, gpu_memory_utilization=0.9, enforce_eager=False)
    assert given == {"gpu_memory_utilization": 0.9, "enforce_eager": False, "seed": 3}


def test_a_cpu_engine_is_one_process_unless_told_otherwise(monkeypatch):
    started(monkeypatch, cpu=True)
    assert os.environ == {
        "VLLM_CPU_OMP_THREADS_BIND": "0-3",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    started(monkeypatch, cpu=False)
    assert os.environ == {"VLLM_CPU_OMP_THREADS_BIND": "0-3"}


def test_a_cpu_engine_takes_what_its_requests_can_use():
    policy = str(policy_path())
    text = AutoConfig.from_pretrained(policy).get_text_config()
    head = text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 4
    sizes = {"max_num_seqs": 7, "max_model_len": 200, "dtype": "float32"}
    found = cpu_defaults(policy, sizes)["kv_cache_memory_bytes"]
    assert found == per_token * 256 * 8  # two blocks of 128 tokens for each, and for vLLM itself
    assert cpu_defaults(policy, sizes | {"dtype": "bfloat16"})["kv_cache_memory_bytes"] == found / 2
    many = cpu_defaults(policy, sizes | {"max_num_seqs": 10**6})
    assert many["kv_cache_memory_bytes"] == 2 * GIB
    assert "kv_cache_memory_bytes" not in cpu_defaults(policy, {"gpu_memory_utilization": 0.3})


def test_other_devices_keep_vllms_own_defaults(monkeypatch):
    assert started(monkeypatch, cpu=False) == {"seed": 3}


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "n", "given", "room"),
    [
        (30, 50, 3, {}, {"max_model_len": 80, "max_num_seqs": 6}),
        (30, 50, 200, {}, {"max_model_len": 80}),  # more completions than run at once
        (30, 50, 3, {"max_model_len": 64}, {"max_num_seqs": 6}),
        (30, 50, 3, {"max_num_seqs": 2}, {"max_model_len": 80}),
        (30, 100_000, 3, {}, {"max_num_seqs": 6}),  # the policy's own context is shorter
    ],
)
def test_an_engine_is_as_long_as_its_runs_longest_row(prompt, max_tokens, n, given, room):
    policy = str(policy_path())
    tasks = [
        Task(prompt_id=str(i), prompt_ids=[5] * (prompt - i), n=n, max_tokens=max_tokens)
        for i in range(2)
    ]
    assert room_of(policy, tasks, load_tokenizer(policy), given) == room


@pytest.mark.parametrize(
    ("stored", "asked", "found"),
    [
        ("float32", "auto", torch.bfloat16),
        ("float16", "auto", torch.float16),
        ("bfloat16", "float", torch.float32),
        ("bfloat16", "half", torch.float16),
        ("float32", torch.float32, torch.float32),
        (None, "auto", torch.bfloat16),
    ],
)
def test_the_dtype_is_known_before_vllm_starts(stored, asked, found):
    config = None if stored is None else AutoConfig.for_model("qwen2", dtype=stored)
    assert room_module.dtype_of(config, {"dtype": asked}) == found


def test_a_model_that_does_not_fit_in_memory_is_refused(monkeypatch, tmp_path):
    policy = str(policy_path())
    sizes = {"max_num_seqs": 7, "max_model_len": 200, "dtype": "float32"}
    cache = cpu_defaults(policy, sizes)["kv_cache_memory_bytes"]
    weights = sum(file.stat().st_size for file in Path(policy).glob("*.safetensors"))
    assert room_module._weight_bytes(policy, sizes) == weights
    assert room_module._weight_bytes(policy, {"dtype": "bfloat16"}) == weights // 2
    monkeypatch.setattr(room_module, "cpu_cache_bytes", lambda: cache)
    monkeypatch.setattr(room_module, "available_memory", lambda device: weights + cache + 5)
    cpu_defaults(policy, sizes, beside=5)
    with pytest.raises(ValueError, match=r"and the LenVM .* of memory are free: use a smaller"):
        cpu_defaults(policy, sizes, beside=6)
    monkeypatch.setattr(room_module, "available_memory", lambda device: weights + cache - 1)
    with pytest.raises(ValueError, match=f"the weights of {policy} take"):
        started(monkeypatch, cpu=True, **sizes, policy=policy)
    assert room_module._weight_bytes("no/such-model", {}) == 0
