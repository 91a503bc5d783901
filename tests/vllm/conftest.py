"""The shipped policy, a LenVM on its trunk whose lengths differ, and engine stand-ins."""

import os
from types import SimpleNamespace

import pytest
import torch

from lenvm_rl.demo import policy_path
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.model import LengthValueModel, describe_policy, load_tokenizer, save_checkpoint
from lenvm_rl.sampling.encoding import encode_prompt
from recipes.demo_policy.tokenizer import vocabulary

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Engines run in this process: each one of its own would import vLLM twice more. The server test
# has all of vLLM's processes.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB of keys and values; wins over ENGINE

ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 64 << 20,
}
"""Settings of vLLM's LLM that keep it small."""
VOCAB = len(vocabulary())
"""Tokens of the shipped policy."""


@pytest.fixture(scope="session")
def vllm():
    """vLLM itself, imported when the first test needs it: that takes ten seconds."""
    return pytest.importorskip("vllm")


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(policy_path())


@pytest.fixture(scope="session")
def lenvm(tmp_path_factory, tokenizer):
    """A LenVM directory: the policy's trunk under a head of a few dozen tokens' spread."""
    torch.manual_seed(0)
    model = LengthValueModel.from_policy(
        policy_path(), gamma=0.98, policy=describe_policy("demo", tokenizer)
    )
    with torch.no_grad():
        model.score.summary.weight.mul_(4)
        model.score.summary.bias.fill_(0.5)
    return save_checkpoint(model, tokenizer, tmp_path_factory.mktemp("lenvm") / "lenvm")


@pytest.fixture(scope="session")
def prompts(tokenizer):
    """Token ids of twelve problems."""
    return [encode_prompt(tokenizer, prompt) for prompt in demo_prompts(12, seed=3)]


@pytest.fixture
def engine_config():
    """What the processor reads of vLLM's configuration, for the shipped policy."""

    def make(lenvm, *, options=None, **changes):
        settings = {"max_num_seqs": 4, "max_model_len": 256, "vocab_size": VOCAB, "stages": 1}
        settings.update(changes)
        return SimpleNamespace(
            additional_config={"lenvm": {"checkpoint": str(lenvm), **(options or {})}},
            speculative_config=settings.get("speculative_config"),
            parallel_config=SimpleNamespace(
                pipeline_parallel_size=settings["stages"],
                enable_batch_sharded_sampling=settings.get("sharded", False),
            ),
            reasoning_config=settings.get("reasoning_config"),
            lora_config=settings.get("lora_config"),
            cache_config=SimpleNamespace(gpu_memory_utilization=0.9, kv_cache_memory_bytes=None),
            scheduler_config=SimpleNamespace(max_num_seqs=settings["max_num_seqs"]),
            model_config=SimpleNamespace(
                dtype=settings.get("dtype", torch.float32),
                enforce_eager=True,
                model=str(settings.get("policy", policy_path())),
                tokenizer=str(settings.get("policy", policy_path())),
                tokenizer_mode="auto",
                tokenizer_revision=None,
                trust_remote_code=False,
                runner_type="generate",
                skip_tokenizer_init=False,
                logprobs_mode=settings.get("logprobs_mode", "processed_logprobs"),
                max_model_len=settings["max_model_len"],
                enable_prompt_embeds=settings.get("enable_prompt_embeds", False),
                try_get_generation_config=lambda: settings.get("generation", {}),
                get_vocab_size=lambda: settings["vocab_size"],
            ),
        )

    return make
