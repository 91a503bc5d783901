"""How do prompts become guided completions in a rollout file, with vLLM offline?

The file is like any other rollout file: token ids, finish reasons, and the log-probability of every
token under the distribution that it was sampled from, the guided one. What guided it is in the
file's metadata, under "guidance", so that nobody takes its lengths for the policy's own.

A run that was killed goes on where its file ends: called again with the same arguments, it makes
the completions that are missing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutWriter
from lenvm_rl.rollouts.resume import completion_seed
from lenvm_rl.scoring import GuidanceSettings
from lenvm_rl.vllm.generate_run import GenerateRun, check_prompts
from lenvm_rl.vllm.options import GuidanceOptions
from lenvm_rl.vllm.serve import PROCESSOR

_AT_ONCE = 512  # completions handed to vLLM together; what is done is on disk, a kill loses no more


@dataclass(frozen=True, kw_only=True)
class GenerateReport:
    """What a run did."""

    rollouts: str
    """The rollout file."""
    prompts: int
    """Prompts completed."""
    rows: int
    """Completions in the file."""
    rows_resumed: int
    """Of these, completions that an earlier, interrupted run had written."""
    tokens: int
    """Tokens generated now, EOS included."""
    seconds: float
    """Wall time of generating and writing, without the start of the engine."""
    tokens_per_s: float
    """Throughput; 0 when nothing was left to do."""
    mean_length: float
    """Mean response length in tokens over all rows, EOS included."""
    share_cut: float
    """Share of rows cut by the token limit, in [0, 1]."""
    mean_deviation: float | None
    """Mean |tokens without EOS - target| / target over all rows, where there is a target."""

    def to_dict(self) -> dict[str, Any]:
        """All figures by name."""
        return asdict(self)


def generate_to_file(
    policy: str,
    prompts: Sequence[Rollout],
    out: str | Path,
    *,
    options: GuidanceOptions,
    guidance: GuidanceSettings,
    n: int = 1,
    max_tokens: int = 1024,
    temperature: float = 1.0,
    seed: int = 0,
    engine: dict[str, Any] | None = None,
) -> GenerateReport:
    """Complete every prompt `n` times under guidance; write them as they finish.

    Args:
        policy: directory or hub name of the policy.
        prompts: rows whose `prompt_ids` (and messages, source, truth) are taken; what they hold
            of a response is not looked at.
        out: rollout directory, which a run with the same arguments goes on with, or .parquet
            file, which must not exist and appears when all is done.
        options: where the LenVM is.
        guidance: mode and target; `mode="off"` samples as the policy does.
        n: completions per prompt.
        max_tokens: longest response, EOS included.
        temperature: 0 takes the most probable token of the guided distribution.
        seed: of the whole run. On a GPU every completion has its own, derived from it; on a CPU
            it is the engine's, because vLLM's CPU runner dies of a seeded request whose prompt is
            read in pieces.
        engine: further settings of vLLM's `LLM`.
    Raises:
        ValueError: no prompts, one that is there twice, a file that another run has written, or
            what vLLM and guidance refuse.
    """
    run = GenerateRun(policy, guidance, options, n, max_tokens, temperature, seed)
    check_prompts(prompts)
    tokenizer = load_tokenizer(policy)
    sha = tokenizer_sha(tokenizer)
    found = run.completed(out, prompts, sha)
    missing = run.missing(prompts, found.keys)
    started, tokens = time.monotonic(), 0
    if missing:
        writer = RolloutWriter(
            out,
            tokenizer_sha=sha,
            vocab_size=len(tokenizer),
            append=bool(found.keys),
            guidance=run.metadata,
        )
        with writer:
            llm = _engine(run, resumed=len(found.keys), **(engine or {}))
            started = time.monotonic()
            for start in range(0, len(missing), _AT_ONCE):
                done = _complete(llm, missing[start : start + _AT_ONCE], run)
                writer.append(done)
                writer.flush()
                tokens += sum(row.length for row in done)
    seconds = time.monotonic() - started
    return GenerateReport(
        rollouts=str(out),
        prompts=len(prompts),
        rows_resumed=len(found.keys),
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds if tokens else 0.0,
        **_lengths(out, guidance.target),
    )


def _engine(run: GenerateRun, *, resumed: int, **settings: Any) -> Any:
    """vLLM's `LLM`. After `resumed` completions it draws from a stream of its own, so that what
    is left does not get the random numbers of what is done."""
    from vllm import LLM
    from vllm.platforms import current_platform

    seed = completion_seed(run.seed, "resumed", resumed) % 2**31 if resumed else run.seed
    return LLM(
        run.policy,
        **{
            "logits_processors": [PROCESSOR],
            "additional_config": run.options.for_vllm(),
            "logprobs_mode": "processed_logprobs",
            "max_num_seqs": 64,
            "enforce_eager": current_platform.is_cpu(),  # compiling there takes minutes
            "seed": seed,
            **settings,
        },
    )


def _complete(llm: Any, missing: Sequence[tuple[Rollout, int]], run: GenerateRun) -> list[Rollout]:
    from vllm import SamplingParams

    sampling = [run.sampling(prompt.prompt_id, sample_id) for prompt, sample_id in missing]
    params = [
        SamplingParams(
            temperature=chosen["temperature"],
            max_tokens=chosen["max_tokens"],
            seed=chosen["seed"],
            logprobs=0,
            detokenize=False,
            extra_args=run.guidance.to_args(),
        )
        for chosen in sampling
    ]
    inputs = [{"prompt_token_ids": list(prompt.prompt_ids)} for prompt, _ in missing]
    answers = llm.generate(inputs, params, use_tqdm=False)
    rows = []
    for (prompt, sample_id), chosen, answer in zip(missing, sampling, answers, strict=True):
        [completion] = answer.outputs
        ids = list(completion.token_ids)
        rows.append(
            replace(
                prompt,
                sample_id=sample_id,
                response_ids=ids,
                finish_reason=completion.finish_reason,
                sampling=chosen,
                policy={"name": run.policy},
                response_logprobs=[
                    step[token].logprob
                    for step, token in zip(completion.logprobs, ids, strict=True)
                ],
            )
        )
    return rows


def _lengths(out: str | Path, target: int | None) -> dict[str, Any]:
    """The report's figures that are about all rows of the file, read as a stream."""
    rows = tokens = cut = 0
    deviation = 0.0
    for row in RolloutReader(out).iter_rows(["response_ids", "finish_reason"]):
        length, is_cut = len(row["response_ids"]), row["finish_reason"] == "length"
        rows, tokens, cut = rows + 1, tokens + length, cut + is_cut
        if target:
            deviation += abs(length - (not is_cut) - target) / target
    return {
        "rows": rows,
        "mean_length": tokens / rows,
        "share_cut": cut / rows,
        "mean_deviation": deviation / rows if target else None,
    }
