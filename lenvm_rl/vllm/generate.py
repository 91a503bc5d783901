"""How do prompts become guided completions in a rollout file, with vLLM offline?

The file is like any other rollout file: token ids, finish reasons, and the log-probability of every
token under the distribution that it was sampled from, the guided one. What guided it stands in the
row's `guidance`, so that nobody takes its length for the policy's own. A response that guidance
ended because its tokens were used up is a row that was cut, like one at the token limit: its last
EOS was no choice of the policy's, and is not in the row.

A run that was killed goes on where its file ends: called again with the same arguments, it makes
the completions that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.model.policy_facts import policy_facts
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.sampling.fill import SamplingReport, fill
from lenvm_rl.sampling.run import Failure, Sample, SamplingRun, Task
from lenvm_rl.vllm.offline import AHEAD, OfflineEngine, start_llm
from lenvm_rl.vllm.options import GuidanceOptions
from lenvm_rl.vllm.room import MAX_NUM_SEQS, beside_lenvm, room_of
from lenvm_rl.vllm.serve import PROCESSOR


@dataclass(frozen=True, kw_only=True)
class GenerateReport(SamplingReport):
    """What a run did."""

    mean_deviation: float | None
    """Mean |tokens without EOS - target| / target over all rows, where there is a target."""


def generate_to_file(
    policy: str,
    tasks: Sequence[Task],
    out: str | Path,
    *,
    options: GuidanceOptions,
    guidance: GuidanceSettings,
    temperature: float = 1.0,
    seed: int = 0,
    engine: dict[str, Any] | None = None,
    chat_template_args: dict[str, Any] | None = None,
    progress: bool = False,
    on_failure: Callable[[Failure], None] | None = None,
) -> GenerateReport:
    """Complete every task under guidance; write completions as they finish.

    Args:
        policy: directory or hub name of the policy.
        tasks: prompts, and how many completions of each; see `evals.encoding.tasks_of_prompts` and
            `generate_run.tasks_of_rollouts`.
        out: rollout directory, which a run with the same arguments goes on with, or .parquet
            file, which must not exist and appears when all is done.
        options: where the LenVM is.
        guidance: mode and target; `mode="off"` samples as the policy does.
        temperature: 0 takes the most probable token of the guided distribution.
        seed: of the whole run. On a GPU every completion has its own, derived from it; on a CPU
            it is the engine's, because vLLM's CPU runner dies of a seeded request whose prompt is
            read in pieces.
        engine: further settings of vLLM's `LLM`; max_model_len and max_num_seqs are chosen so
            that the run and the LenVM's memory allow where they are None or missing.
        chat_template_args: with which the prompts were rendered.
        progress: show throughput and remaining time on stderr.
        on_failure: told of every completion that could not be made.
    Raises:
        ValueError: no prompts, one that is there twice, a file that another run has written, a
            LenVM that does not fit in memory, or what vLLM and guidance refuse.
    """
    tokenizer = load_tokenizer(policy, chat_template_args=chat_template_args)
    run = SamplingRun(
        tasks=tasks,
        policy=policy,
        tokenizer_sha=tokenizer_sha(tokenizer),
        temperature=temperature,
        seed=seed,
        own_seeds=torch.cuda.is_available(),
        guidance=guidance_metadata(guidance, options),
        **policy_facts(policy, tokenizer).of_run(),
    )

    given = {name: value for name, value in (engine or {}).items() if value is not None}
    room = room_of(run, tokenizer, given)
    options, settings = beside_lenvm(policy, options, given, room, total=run.total)

    def start(resumed: int) -> Any:
        return _engine(policy, options, seed=seed, resumed=resumed, **settings)

    vllm = OfflineEngine(run, start, extra_args=guidance.to_args(), logprobs=True, ahead=AHEAD)

    def steered(missing: Iterator[tuple[Task, int]], resumed: int) -> Iterator[Sample | Failure]:
        return (ended_honestly(done, guidance) for done in vllm(missing, resumed))

    report = fill(run, out, steered, progress=progress, on_failure=on_failure)
    return GenerateReport(
        **report.to_dict(), mean_deviation=_mean_deviation(out, guidance.target, report.rows)
    )


def guidance_metadata(
    guidance: GuidanceSettings, options: GuidanceOptions
) -> dict[str, Any] | None:
    """What rows say of their guidance; None where the policy is sampled as it is."""
    if guidance.changes_nothing:
        return None
    return {"lenvm": options.checkpoint, **guidance.to_args()}


def ended_honestly(done: Sample | Failure, guidance: GuidanceSettings) -> Sample | Failure:
    """A completion as it stands in the file: one whose target was used up, and that had to end
    whatever stood there, is cut at the target."""
    if isinstance(done, Failure) or not guidance.forces_eos or done.finish_reason != "stop":
        return done
    written = len(done.token_ids) - 1
    if guidance.target is None or written < guidance.target - guidance.count_eos:
        return done
    return replace(
        done,
        token_ids=done.token_ids[:-1],
        finish_reason="length",
        logprobs=done.logprobs and done.logprobs[:-1],
    )


def _engine(policy: str, options: GuidanceOptions, **settings: Any) -> Any:
    """vLLM's `LLM` with the processor."""
    return start_llm(
        policy,
        **{
            "logits_processors": [PROCESSOR],
            "additional_config": options.for_vllm(),
            "logprobs_mode": "processed_logprobs",
            "max_num_seqs": MAX_NUM_SEQS,
            **settings,
        },
    )


def _mean_deviation(out: str | Path, target: int | None, rows: int) -> float | None:
    """Over all rows of the file, read as a stream."""
    if not target or not rows:
        return None
    total = 0.0
    for row in RolloutReader(out).iter_rows(["response_ids", "finish_reason"]):
        length = len(row["response_ids"]) - (row["finish_reason"] != "length")
        total += abs(length - target) / target
    return total / rows
