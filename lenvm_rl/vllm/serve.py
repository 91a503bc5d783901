"""The command line of a guided server: `vllm serve` with processor, LenVM and sane defaults."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lenvm_rl.model import check_tokenizer, load_tokenizer
from lenvm_rl.model.hub import check_weights
from lenvm_rl.model.policy import policy_facts
from lenvm_rl.vllm.offline import CHECKED_FORMATS
from lenvm_rl.vllm.options import ENVIRONMENT, REASONING, GuidanceOptions, checkpoint_config
from lenvm_rl.vllm.room import MAX_NUM_SEQS, beside_lenvm, cpu_cache_bytes

PROCESSOR = "lenvm_rl.vllm:LengthGuidance"
MIDDLEWARE = "lenvm_rl.vllm.refusals.RefuseMisplaced"
NEUTRAL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What a request that does not say otherwise is sampled with, whatever the policy's generation
configuration recommends: all of these act on the guided distribution, and bend its lengths."""
KV_BYTES = "--kv-cache-memory-bytes"


def serve_command(
    policy: str,
    options: GuidanceOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_num_seqs: int = MAX_NUM_SEQS,
    extra: Sequence[str] = (),
) -> list[str]:
    """The `vllm serve` command line.

    Log-probabilities are those of the distribution that tokens were sampled from. Requests beyond
    `max_num_seqs` wait in vLLM's queue. Truncation and
    penalties are a request's own or none (`NEUTRAL`); temperature and EOS tokens stay those of the
    policy's generation configuration.

    Args:
        policy: directory or hub name.
        options: of the LenVM.
        host, port: where to listen.
        max_num_seqs: requests that run at once.
        extra: further arguments of `vllm serve`; they win over the defaults.
    Raises:
        ValueError: `vllm` is not installed.
    """
    command = [vllm_program(), "serve", policy, "--host", host, "--port", str(port)]
    defaults = {
        "--logits-processors": PROCESSOR,
        "--additional-config": json.dumps(options.for_vllm()),
        "--max-num-seqs": str(max_num_seqs),
        "--logprobs-mode": "processed_logprobs",
        "--override-generation-config": json.dumps(NEUTRAL),
    }
    given = _names(extra)
    if "cpu" in version("vllm") and not given & {KV_BYTES, "--gpu-memory-utilization"}:
        # vLLM's own default does not start where other processes hold some of the memory.
        defaults[KV_BYTES] = str(cpu_cache_bytes())
    for name, value in defaults.items():
        if name not in given:
            command += [name, value]
    return [*command, "--middleware", MIDDLEWARE, *extra]


def _names(words: Sequence[str]) -> set[str]:
    return {word.split("=")[0] for word in words}


def check_server(
    policy: str, options: GuidanceOptions, *, max_num_seqs: int, extra: Sequence[str] = ()
) -> None:
    """Refuse, before vLLM starts, a server whose policy and LenVM do not go together.

    Raises:
        ValueError: weights that are not all there, no end of a response, another tokenizer; or too
            little memory, with the arithmetic and numbers that would fit.
    """
    words = [part for word in extra for part in word.split("=", 1)]
    said = dict(zip(words, words[1:], strict=False))
    for model in (policy, options.checkpoint):
        if said.get("--load-format", "auto") in CHECKED_FORMATS:
            check_weights(model)
    tokenizer = load_tokenizer(said.get("--tokenizer", policy))
    policy_facts(policy, tokenizer)  # refuses an end that nobody named
    check_tokenizer(checkpoint_config(options.checkpoint), tokenizer)
    given: dict[str, Any] = {"max_num_seqs": int(said.get("--max-num-seqs", max_num_seqs))}
    if "--max-model-len" in said:
        if not said["--max-model-len"].isdecimal():
            return  # vLLM's own ways of writing it: the engine will refuse what does not fit
        given["max_model_len"] = int(said["--max-model-len"])
    if "--dtype" in said:
        given["dtype"] = said["--dtype"]
    if "--gpu-memory-utilization" in said:
        given["gpu_memory_utilization"] = float(said["--gpu-memory-utilization"])
    beside_lenvm(policy, options, given, {})


def curl_line(policy: str, *, host: str = "127.0.0.1", port: int = 8000) -> str:
    """A request that can be pasted into a shell once the server is up."""
    body = {
        "model": policy,
        "messages": [{"role": "user", "content": "12 + 7 - 3 = ?"}],
        "vllm_xargs": {"lenvm_mode": "at_most", "lenvm_target": 60},
    }
    return (
        f"curl http://{host}:{port}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )


def serve(command: Sequence[str], options: GuidanceOptions) -> None:
    """Become the server: replaces this process, so that signals reach it."""
    environment = {**os.environ, ENVIRONMENT["checkpoint"]: options.checkpoint}
    if not _names(command).isdisjoint({"--reasoning-parser", "--reasoning-config"}):
        environment[REASONING] = "1"
    sys.stdout.flush()
    os.execve(command[0], list(command), environment)


def vllm_program() -> str:
    """Path of the program `vllm`.

    Raises:
        ValueError: it is not installed.
    """
    beside = Path(sys.executable).with_name("vllm")
    program = str(beside) if beside.is_file() else shutil.which("vllm")
    if program is None:
        raise ValueError(
            'the program `vllm` is not installed: pip install ".[vllm]" in a clone of lenvm-rl, or '
            "on a CPU `scripts/setup.sh --vllm`."
        )
    return program
