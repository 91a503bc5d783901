"""Sampling of rollout files, as `lenvm sample` does it: one function for all engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lenvm_rl.cli.table import Answer
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.model import load_tokenizer
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.encoding import tasks_of_prompts, tasks_of_rollouts
from lenvm_rl.sampling.fill import FLUSH_SECONDS, SamplingReport, fill
from lenvm_rl.sampling.run import Engine, Failure, SamplingRun, Task, TokenSampling
from lenvm_rl.sampling.server.engine import ServerEngine, ServerSettings
from lenvm_rl.sampling.transformers.engine import TransformersEngine
from lenvm_rl.vllm.sample import VllmSettings, open_engine


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How many completions, and how tokens are drawn."""

    n: int = 8
    """Completions per prompt."""
    max_tokens: int = 1024
    """Longest response in tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_p: float | None = None
    """Keep the smallest set of tokens with this mass (default: 1, all)."""
    top_k: int | None = None
    """Keep the k most probable tokens (default: 0, all; 20 candidates where guided)."""
    min_p: float | None = None
    """Drop tokens below this share of the most probable one's probability (default: 0; .02 where
    guided)."""
    seed: int = 0
    """Seed of everything random."""
    batch_size: int | None = None
    """Completions handed to the engine at once (default: 128 of transformers, 1024 of vLLM)."""
    flush_seconds: float = FLUSH_SECONDS
    """Seconds between flushes to disk: a kill loses no more work."""

    def candidates(self) -> dict[str, Any]:
        """top_p, top_k and min_p, where they were said."""
        found = {"top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class GuidanceFlags:
    """What a LenVM steers for; nothing: the policy alone."""

    equal: int | None = None
    """Target length: exactly N tokens, EOS not counted."""
    at_most: int | None = None
    """Target length: at most N tokens."""
    at_least: int | None = None
    """Target length: at least N tokens."""
    tilt: float | None = None
    """Tilt of the distribution: below 0 shorter, above longer."""
    scale: float | None = None
    """Factor on the expected discounted length."""
    soft: bool = False
    """With equal: sample, with the target as mean."""
    risk: float | None = None
    """With at_most: the chance that N tokens are not enough (a LenVM of distributions)."""
    segment: Literal["response", "thinking", "answer"] = "response"
    """What the lengths are of; the LenVM must count it (`lenvm segment`)."""

    def settings(self, **candidates: Any) -> GuidanceSettings | None:
        """Guidance of the one mode that was asked for; None without one.

        Args:
            candidates: further fields of `GuidanceSettings`.
        Raises:
            ValueError: more than one mode, `soft` without equal, or a value out of range.
        """
        modes = ("equal", "at_most", "at_least", "tilt", "scale")
        given = {mode: getattr(self, mode) for mode in modes if getattr(self, mode) is not None}
        if len(given) > 1 or (self.soft and "equal" not in given):
            raise ValueError(
                f"got {', '.join(given) or 'no mode'}{' with soft' if self.soft else ''}: choose "
                f"one of {', '.join(modes)}; soft goes with equal."
            )
        for mode, value in given.items():
            name = {"tilt": "beta", "scale": "scale"}.get(mode, "target")
            mode = "equal_soft" if self.soft else mode
            asked = {name: value, "segment": self.segment, "risk": self.risk}
            return GuidanceSettings(mode=mode, **asked, **candidates)
        return None


def sample(
    out: Path,
    prompts: Sequence[Prompt] | None = None,
    *,
    rollouts: Path | None = None,
    policy: str | None = None,
    engine: Literal["transformers", "vllm", "ray", "server"] = "transformers",
    lenvm: str | Path | None = None,
    guidance: GuidanceFlags = GuidanceFlags(),  # noqa: B008 (frozen)
    sampling: SamplingSettings = SamplingSettings(),  # noqa: B008
    server: ServerSettings = ServerSettings(),  # noqa: B008
    vllm: VllmSettings = VllmSettings(),  # noqa: B008
    tokenizer: str | None = None,
    chat_template_args: dict[str, Any] | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Answer:
    """Sample completions into a rollout file; the same command goes on where it was killed.

    Engines fill the same file, guided by a LenVM or not. Completions that could not be made are
    counted by kind at the end (exit status 1); the same command tries them again. Lengths that are
    asked for count response tokens without EOS; every row says what guided it.

    Example: `lenvm sample --policy demo --prompts demo:300 -n 8 --out runs/rollouts`

    Example: `lenvm sample --policy demo --lenvm runs/demo/checkpoint/lenvm --prompts demo:50
    --equal 120 --engine vllm --out runs/equal-120`

    Example: `lenvm sample --server http://a:8000,http://b:8000 --model Qwen/Qwen2.5-7B-Instruct
    --prompts prompts.jsonl -n 16 --max-tokens 5000 --out runs/rollouts`

    Args:
        out: directory to write to; or a .parquet file, which appears when all is done.
        prompts: what to complete.
        rollouts: or a rollout file: completes its prompts anew.
        policy: directory, hub name, or `demo`.
        engine: transformers, vllm (this process), ray (vLLM on many nodes); server is chosen by
            its address.
        lenvm: value model that guides; at a server, its name for the file.
        tokenizer: with servers: tokenizer of the policy; policy or model by default.
        limit: maximum number of prompts.
    """
    if (prompts is None) == (rollouts is None):
        raise ValueError("give exactly one of --prompts and --rollouts.")
    engine = "server" if server.server else engine
    named = _policy_of(engine, policy, server)
    steering = guidance.settings(**sampling.candidates())
    free = steering is None or steering.changes_nothing
    if not free and lenvm is None and engine != "server":
        raise ValueError(
            "there is nothing to guide by: name the value model's directory (--lenvm)."
        )
    place = named if engine != "server" else tokenizer or named
    tokens = load_tokenizer(place, chat_template_args=chat_template_args)
    size: dict[str, Any] = {"n": sampling.n, "max_tokens": sampling.max_tokens}
    if rollouts is not None:
        tasks = tasks_of_rollouts(rollouts, limit=limit, guidance=steering, **size)
    else:
        tasks = tasks_of_prompts(tokens, (prompts or ())[:limit], guidance=steering, **size)
    if engine == "server":
        settings = replace(server, model=server.model or policy)
        opened: Engine = ServerEngine.open(settings, place, tokenizer=tokens, lenvm=lenvm)
    elif engine == "transformers":
        opened = _transformers(named, tokens, tasks, None if free else lenvm, sampling)
    else:
        opened = open_engine(
            named,
            tokens,
            tasks,
            lenvm=lenvm,
            seed=sampling.seed,
            settings=vllm,
            batch_size=sampling.batch_size,
            ray=engine == "ray",
        )
    drawn = TokenSampling(
        temperature=sampling.temperature,
        seed=sampling.seed,
        **(sampling.candidates() if free else {}),
    )
    examples: dict[str, str] = {}
    report = fill(
        SamplingRun.of(opened, tasks, drawn),
        out,
        opened,
        progress=progress,
        flush_seconds=sampling.flush_seconds,
        on_failure=_first_of_each_kind(examples),
    )
    return Answer(
        report.to_dict(),
        complaint=_missing(report, examples),
        warnings=_unknown_ids(report.rows_with_unknown_ids),
    )


def _policy_of(engine: str, policy: str | None, server: ServerSettings) -> str:
    """The policy's name, once engine and options go together."""
    if engine == "server" and not server.server:
        raise ValueError("engine server: say its address, --server http://HOST:PORT.")
    named = policy or (server.model if engine == "server" else None)
    if named is None:
        raise ValueError(f"--policy is missing: {engine} needs it (a server: --policy or --model).")
    if engine != "server" and (server.end_token or server.think_tags or server.vocab_size):
        raise ValueError(
            "--end-token, --think-tags and --vocab-size are for --server: the other engines take "
            "token ids as they are, and the ends from the policy's own files."
        )
    return named


def _missing(report: SamplingReport, examples: Mapping[str, str]) -> str:
    """What is missing, by kind, most frequent first, each with its first case; "" if none."""
    if not report.rows_missing:
        return ""
    counts = report.failures
    lines = [f"{report.rows_missing} completions are missing; the same command tries them again."]
    for kind in sorted(counts, key=lambda kind: -counts[kind]):
        lines.append(f"  {counts[kind]:6d}  {kind}  ({examples.get(kind, '')})")
    return "\n".join(lines)


def _unknown_ids(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (
        f"{count} completions hold ids that stand for no token (the policy samples from the "
        "padding of its vocabulary); they are kept.",
    )


def _transformers(
    policy: str,
    tokenizer: Any,
    tasks: Sequence[Task],
    lenvm: str | Path | None,
    sampling: SamplingSettings,
) -> Engine:
    longest = max((len(task.prompt_ids) for task in tasks), default=0) + sampling.max_tokens
    return TransformersEngine.load(
        policy,
        lenvm,
        max_length=longest,
        max_candidates=max(20, sampling.top_k or 0),
        max_batch=sampling.batch_size or 128,
        tokenizer=tokenizer,
    )


def _first_of_each_kind(examples: dict[str, str]) -> Callable[[Failure], None]:
    def remember(failure: Failure) -> None:
        examples.setdefault(failure.kind, f"prompt {failure.task.prompt_id!r}: {failure.detail}")

    return remember
