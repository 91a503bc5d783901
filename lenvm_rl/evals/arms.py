"""Arms of an evaluation: completions of one method at one setting, each arm a rollout file.

    source = open_source(policy, lenvm, prompts, max_tokens=512, top_k=20)
    source.fill(arm, "runs/control/rollouts")

Unguided completions choose among the same candidates as guided ones: dropping improbable tokens
alone makes a policy better, and guidance shall not get the credit for it. A run that was killed
goes on with the completions that are missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.model import load_tokenizer
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.encoding import encode_prompt, tasks_of_prompts
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.run import OVER_CONTEXT, Engine, Failure, SamplingRun, TokenSampling
from lenvm_rl.sampling.server.engine import ServerEngine, ServerSettings
from lenvm_rl.sampling.transformers.engine import TransformersEngine

_ROOM = 128  # tokens that a target in words may add to a prompt


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is sampled into one rollout file."""

    name: str
    """Of the file."""
    prompts: Sequence[Prompt]
    """As they are asked."""
    n: int
    """Completions per prompt."""
    max_tokens: int
    """Longest response, EOS included."""
    stream: str
    """Arms of one stream draw the same random numbers."""
    guides: Sequence[GuidanceSettings] | None = None
    """Of each prompt; None: the policy alone."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request's body, to a server."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What completions come from, and what they are measured with."""

    tokenizer: Any
    engine: Callable[[Mapping[str, Any]], Engine] | None = None
    """The engine whose requests have further fields; None: all rollout files are there already."""
    policy: Any | None = None
    """The policy as a transformers causal LM; None where a server has it."""
    sampling: TokenSampling = TokenSampling()
    """Candidates of unguided completions, and the seed of all."""
    pictures: bool = False
    """Whether the engine sees pictures."""
    progress: bool = False
    failures: Counter[str] = field(default_factory=Counter)
    """Completions that could not be made, by kind."""

    def fill(self, arm: Arm, folder: str | Path, *, whole: bool = False) -> None:
        """Sample what `folder / arm.name` lacks; nothing without an engine.

        Args:
            whole: refuse an arm with missing completions, which are else counted.
        Raises:
            ValueError: a prompt that cannot be asked, a file of other settings, or no completion
                at all.
        """
        if self.engine is None:
            return
        tasks = tasks_of_prompts(
            self.tokenizer,
            arm.prompts,
            n=arm.n,
            max_tokens=arm.max_tokens,
            guidance=arm.guides,
            pictures=self.pictures,
        )
        refused = [task.refused[1] for task in tasks if task.refused]
        if refused:
            raise ValueError(refused[0])
        seed, reasons = self.sampling.seed, []

        def note(failure: Failure) -> None:
            reasons.append(f"{failure.kind}: {failure.detail}")
            if failure.kind == OVER_CONTEXT:
                raise ValueError(failure.detail)

        engine = self.engine(arm.fields)
        report = fill(
            SamplingRun.of(
                engine,
                tasks,
                # guided requests name their candidates in their settings
                self.sampling if arm.guides is None else TokenSampling(seed=seed),
                stream=arm.stream,
            ),
            Path(folder) / arm.name,
            engine,
            progress=arm.name if self.progress else False,
            on_failure=note,
        )
        self.failures.update(report.failures)
        if report.rows_missing and (whole or not report.rows):
            raise ValueError(
                f"{report.rows_missing} of {report.rows + report.rows_missing} completions of "
                f"{arm.name} could not be made ({reasons[0]}): run the same command again, what is "
                "done is kept."
            )


def open_source(
    policy: str | Path,
    lenvm: str | Path | None,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    sampling: TokenSampling,
    rollouts: str | Path | None = None,
    connection: ServerSettings | None = None,
    max_batch: int = 64,
    chat_template_args: dict[str, Any] | None = None,
    progress: bool = False,
) -> Source:
    """A guided policy in this process or behind servers; or no engine, for files that are there.

    Args:
        policy: directory or hub name; with a server, of its tokenizer.
        lenvm: directory of the value model; not read with a server, which has its own.
        prompts: the longest says how much room guidance needs.
        max_tokens: longest response.
        sampling: of unguided completions; guided ones get as many candidates.
        rollouts: files that are there already.
        connection: servers that sample instead of this process.
        max_batch: requests that decode together in this process.
        chat_template_args: what the chat template gets besides the messages.
    Raises:
        ValueError: neither a value model nor a server nor files.
    """
    tokenizer = load_tokenizer(policy, chat_template_args=chat_template_args)
    common: dict[str, Any] = {"tokenizer": tokenizer, "sampling": sampling, "progress": progress}
    if connection is not None and connection.server:

        def asked(fields: Mapping[str, Any]) -> Engine:
            settings = replace(connection, fields={**connection.fields, **fields})
            return ServerEngine.open(settings, policy, tokenizer=tokenizer, lenvm=lenvm)

        return Source(engine=asked if rollouts is None else None, pictures=True, **common)
    if rollouts is None and lenvm is None:
        raise ValueError(
            "there is nothing to guide by: name the value model's directory (--lenvm), or a "
            "server that has one (--server)."
        )
    longest = max(len(encode_prompt(tokenizer, prompt)) for prompt in prompts)
    here = TransformersEngine.load(
        policy,
        lenvm if rollouts is None else None,
        max_length=longest + _ROOM + max_tokens,
        max_candidates=sampling.top_k,
        max_batch=max_batch,
        chat_template_args=chat_template_args,
    )
    engine = (lambda fields: here) if rollouts is None else None
    return Source(engine=engine, policy=here.model, **common)
