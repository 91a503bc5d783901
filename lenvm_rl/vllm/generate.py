"""How do prompts become guided completions in a rollout file, with vLLM offline?

The file is like any other rollout file: token ids, finish reasons, and the log-probability of every
token under the distribution that it was sampled from, the guided one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.rollouts import Rollout, RolloutReader, RolloutWriter
from lenvm_rl.scoring import GuidanceSettings
from lenvm_rl.vllm.options import GuidanceOptions
from lenvm_rl.vllm.serve import PROCESSOR

_AT_ONCE = 256  # prompts handed to vLLM together; what is done is on disk


@dataclass(frozen=True, kw_only=True)
class GenerateReport:
    """What a run did."""

    rollouts: str
    """The rollout file."""
    prompts: int
    """Prompts completed."""
    rows: int
    """Completions written."""
    tokens: int
    """Tokens generated, EOS included."""
    seconds: float
    """Wall time of generating and writing, without the start of the engine."""
    tokens_per_s: float
    """Throughput."""
    mean_length: float
    """Mean response length in tokens, EOS included."""
    share_cut: float
    """Share of completions cut by the token limit, in [0, 1]."""
    mean_deviation: float | None
    """Mean |tokens without EOS - target| / target where there is a target."""

    def to_dict(self) -> dict[str, Any]:
        """All figures by name."""
        return asdict(self)


def guidance_of(
    asked: Mapping[str, float | None], *, soft: bool = False, **settings: Any
) -> GuidanceSettings:
    """Settings of the one mode that was asked for; none is `off`.

    Args:
        asked: target of equal, at_most, at_least; beta of tilt; factor of scale; None if not.
        soft: equal in its soft form.
        settings: further fields of `GuidanceSettings`.
    Raises:
        ValueError: more than one mode, `soft` without equal, or a value out of range.
    """
    given = {mode: value for mode, value in asked.items() if value is not None}
    if len(given) > 1 or (soft and "equal" not in given):
        raise ValueError(
            f"got {', '.join(given) or 'no mode'}{' with soft' if soft else ''}: choose one of "
            f"{', '.join(asked)}; soft goes with equal."
        )
    for mode, value in given.items():
        name = {"tilt": "beta", "scale": "scale"}.get(mode, "target")
        return GuidanceSettings(mode="equal_soft" if soft else mode, **{name: value}, **settings)
    return GuidanceSettings()


def prompts_of_rollouts(path: str | Path) -> Iterator[Rollout]:
    """One row per prompt of a rollout file: its first completion stands for it."""
    seen: set[str] = set()
    for row in RolloutReader(path).iter_rows():
        if row.prompt_id not in seen:
            seen.add(row.prompt_id)
            yield row


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
        out: rollout directory or .parquet file, which must not exist.
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
        ValueError: no prompts, an existing file, or what vLLM and guidance refuse.
    """
    from vllm import LLM

    if not prompts:
        raise ValueError("no prompts to complete: give at least one.")
    tokenizer = load_tokenizer(policy)
    writer = RolloutWriter(out, tokenizer_sha=tokenizer_sha(tokenizer), vocab_size=len(tokenizer))
    llm = LLM(
        policy,
        **{
            "logits_processors": [PROCESSOR],
            "additional_config": options.for_vllm(),
            "logprobs_mode": "processed_logprobs",
            "max_num_seqs": 64,
            "seed": seed,
            **(engine or {}),
        },
    )
    sampling = {
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "max_tokens": max_tokens,
    }
    rows = tokens = cut = 0
    deviations: list[float] = []
    started = time.monotonic()
    with writer:
        for start in range(0, len(prompts), _AT_ONCE):
            batch = prompts[start : start + _AT_ONCE]
            done = _complete(llm, batch, guidance, sampling, n=n, seed=seed, policy=policy)
            writer.append(done)
            writer.flush()
            rows += len(done)
            tokens += sum(row.length for row in done)
            cut += sum(row.cut for row in done)
            if guidance.target:
                deviations += [_deviation(row, guidance.target) for row in done]
    seconds = time.monotonic() - started
    return GenerateReport(
        rollouts=str(out),
        prompts=len(prompts),
        rows=rows,
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        mean_length=tokens / rows,
        share_cut=cut / rows,
        mean_deviation=sum(deviations) / len(deviations) if deviations else None,
    )


def _complete(
    llm: Any,
    prompts: Sequence[Rollout],
    guidance: GuidanceSettings,
    sampling: dict[str, Any],
    *,
    n: int,
    seed: int,
    policy: str,
) -> list[Rollout]:
    from vllm import SamplingParams

    asked, params = [], []
    for prompt in prompts:
        for sample_id in range(n):
            own = _seed(seed, prompt.prompt_id, sample_id) if torch.cuda.is_available() else None
            asked.append((prompt, sample_id, own))
            params.append(
                SamplingParams(
                    temperature=sampling["temperature"],
                    max_tokens=sampling["max_tokens"],
                    seed=own,
                    logprobs=0,
                    detokenize=False,
                    extra_args=guidance.to_args(),
                )
            )
    inputs = [{"prompt_token_ids": list(prompt.prompt_ids)} for prompt, _, _ in asked]
    rows = []
    for (prompt, sample_id, own), answer in zip(
        asked, llm.generate(inputs, params, use_tqdm=False), strict=True
    ):
        [completion] = answer.outputs
        ids = list(completion.token_ids)
        rows.append(
            replace(
                prompt,
                sample_id=sample_id,
                response_ids=ids,
                finish_reason=completion.finish_reason,
                sampling={**sampling, "seed": own},
                policy={"name": policy},
                response_logprobs=[
                    step[token].logprob
                    for step, token in zip(completion.logprobs, ids, strict=True)
                ],
            )
        )
    return rows


def _deviation(row: Rollout, target: int) -> float:
    """|tokens without EOS - target| / target."""
    return abs(row.length - (not row.cut) - target) / target


def _seed(seed: int, prompt_id: str, sample_id: int) -> int:
    """In [0, 2**63), unrelated between neighbours."""
    digest = hashlib.sha256(f"{seed}/{sample_id}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
