"""Candidate values inside a running vLLM against full recompute, and the tokens of other requests.

    python -m scripts.bench exactness                       the shipped policy, a random value head
    python -m scripts.bench exactness --policy DIR --lenvm DIR --values 200000

Three engines, one after another:

  plain    without the processor: what seeded requests sample
  roomy    with it: the same requests, mode off and beta 0, alone and mixed with guided ones; every
           token must be the same
  tight    prompts read in pieces, a cache too small for the load (requests are preempted and
           resumed), all modes mixed: every candidate value is compared with a full recompute of its
           whole history by another copy of the LenVM

The last line of stdout is one JSON object; exit status 1 when a bar is missed (values differ by
more than 1e-5, fewer values than asked for, no preemption, or a token that differs).
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.demo.prompts import demo_prompts, resolve_policy
from lenvm_rl.model import LengthValueModel, describe_policy, load_tokenizer, save_checkpoint
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.vllm.options import GuidanceOptions
from scripts.bench import harness
from scripts.bench.harness import CONSOLE
from scripts.bench.serving import stop

TOLERANCE = 1e-5
OFF = {"lenvm_mode": "off"}
NEUTRAL = {"lenvm_mode": "tilt", "lenvm_beta": 0.0}
EVERY = {"lenvm_min_p": 0.0}  # as many candidates as there is room for
MODES = [
    {"lenvm_mode": "tilt", "lenvm_beta": 6.0, **EVERY},
    {"lenvm_mode": "at_least", "lenvm_target": 90, **EVERY},
    {"lenvm_mode": "equal_soft", "lenvm_target": 120, **EVERY},
    {"lenvm_mode": "scale", "lenvm_scale": 1.2, "lenvm_top_k": 30, **EVERY},
    {"lenvm_mode": "tilt", "lenvm_beta": 3.0, "lenvm_top_p": 0.95, **EVERY},
]


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """The load, and how much is compared."""

    policy: str = "demo"
    """Directory, hub name, or demo."""
    lenvm: str | None = None
    """Value model; a random head on the policy otherwise."""
    values: int = 50_000
    """Candidate values to compare."""
    requests: int = 24
    """Requests at once."""
    max_tokens: int = 128
    """Longest response."""


def run(options: Options) -> dict[str, Any]:
    """All three engines; the figures."""
    policy = resolve_policy(options.policy)
    tokenizer = load_tokenizer(policy)
    prompts = [encode_prompt(tokenizer, p) for p in demo_prompts(options.requests, seed=11)]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        lenvm = options.lenvm or random_lenvm(policy, tokenizer, scratch / "lenvm")
        identical = compare_tokens(policy, lenvm, prompts, options.max_tokens, scratch)
        exact = compare_values(policy, lenvm, prompts, options, scratch)
    passed = (
        all(identical.values())
        and exact["max_difference"] <= TOLERANCE
        and exact["values"] >= options.values
        and exact["preemptions"] > 0
    )
    return {**exact, "tolerance": TOLERANCE, "identical_tokens": identical, "passed": passed}


def random_lenvm(policy: str, tokenizer: Any, path: Path) -> str:
    """The policy's trunk under a random head whose values spread widely."""
    torch.manual_seed(0)
    model = LengthValueModel.from_policy(
        policy, gamma=0.99, policy=describe_policy(policy, tokenizer)
    )
    with torch.no_grad():
        model.score.summary.weight.mul_(4)
    return str(save_checkpoint(model, tokenizer, path))


def start_engine(policy: str, lenvm: str | None, scratch: Path, **settings: Any) -> Any:
    """A small vLLM engine; with a LenVM, one that audits itself into scratch/audit.json."""
    from vllm import LLM

    if lenvm is not None:
        os.environ["LENVM_AUDIT_FILE"] = str(scratch / "audit.json")
        settings["logits_processors"] = ["scripts.bench.audit:AuditedGuidance"]
        settings["additional_config"] = GuidanceOptions(checkpoint=lenvm).for_vllm()
    defaults = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 256 << 20}
    return LLM(policy, **{**defaults, **settings})


def sample(engine: Any, prompts: list, asked: list, max_tokens: int, *, seeded: bool) -> list:
    """Token ids of one completion per prompt, `asked[i]` being its guidance."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=1.0,
            max_tokens=max_tokens,
            seed=i if seeded else None,
            detokenize=False,
            extra_args=args,
        )
        for i, args in enumerate(asked)
    ]
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    answers = engine.generate(inputs, params, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def compare_tokens(
    policy: str, lenvm: str, prompts: list, max_tokens: int, scratch: Path
) -> dict[str, bool]:
    """Whether requests that ask for no guidance sample what a server without it samples."""
    CONSOLE.print("plain: without the processor")
    room = {"max_num_seqs": len(prompts), "max_num_batched_tokens": 8192}
    count = len(prompts)
    engine = start_engine(policy, None, scratch, **room)
    reference = sample(engine, prompts, [None] * count, max_tokens, seeded=True)
    stop(engine)
    CONSOLE.print("roomy: with the processor")
    os.environ["LENVM_AUDIT_VALUES"] = "0"
    engine = start_engine(policy, lenvm, scratch, **room)
    cases = {"no_arguments": [None] * count, "off": [OFF] * count, "beta_0": [NEUTRAL] * count}
    cases["mixed_with_guided"] = [[None, OFF, NEUTRAL, MODES[0]][i % 4] for i in range(count)]
    same = {}
    for name, asked in cases.items():
        sampled = sample(engine, prompts, asked, max_tokens, seeded=True)
        same[name] = all(
            sampled[i] == reference[i] for i in range(count) if asked[i] is not MODES[0]
        )
    stop(engine)
    return same


def compare_values(
    policy: str, lenvm: str, prompts: list, options: Options, scratch: Path
) -> dict[str, Any]:
    """Candidate values under chunked prefill and preemption, against full recompute."""
    CONSOLE.print("tight: prompts in pieces, a cache too small for the load")
    os.environ["LENVM_AUDIT_VALUES"] = "1"
    count = len(prompts)
    engine = start_engine(
        policy,
        lenvm,
        scratch,
        max_num_seqs=count,
        max_num_batched_tokens=max(64, count),
        kv_cache_memory_bytes=tight_cache(policy),
        disable_log_stats=False,
    )
    rounds = 0
    audit: dict[str, Any] = {"values": 0}
    while audit["values"] < options.values:
        asked = [MODES[(i + rounds) % len(MODES)] for i in range(count)]
        sample(engine, prompts, asked, options.max_tokens, seeded=False)
        audit = json.loads((scratch / "audit.json").read_text())
        rounds += 1
        CONSOLE.print(f"  {audit['values']} values, off by at most {audit['max_difference']:.1e}")
    preemptions = sum(m.value for m in engine.get_metrics() if m.name == "vllm:num_preemptions")
    stop(engine)
    kept = ("values", "max_difference", "max_logit_difference", "longest_history")
    return {
        **{name: audit[name] for name in kept},
        "preemptions": int(preemptions),
        "tokens_per_prefill_step": max(64, count),
        "requests": rounds * count,
    }


def tight_cache(policy: str) -> int:
    """Bytes of a key/value cache that holds the longest request and little more."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(policy).get_text_config()
    heads = config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * 4 * config.num_hidden_layers * heads * head_dim  # keys and values, float32
    return int(2.2 * config.max_position_embeddings * per_token)
