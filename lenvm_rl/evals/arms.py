"""Arms of an evaluation: completions of one method at one setting, and what became of them.

    source = open_source(policy, lenvm, prompts, max_tokens=512, sampling=TokenSampling(top_k=20))
    source.fill(arm, "runs/control/rollouts")
    outcomes = read_outcomes("runs/control/rollouts/guided-equal-64", prompts, source.tokenizer)

Each arm is a rollout file; a run that was killed goes on with the completions that are missing.
Unguided completions choose among the same candidates as guided ones: dropping improbable tokens
alone makes a policy better, and guidance shall not get the credit for it. Outcomes are the same few
numbers for both. Lengths are response tokens without EOS, the count that targets ask for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from lenvm_rl.evals.text_quality import ends_sentence, repetition
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.model import load_tokenizer
from lenvm_rl.model.forward import Padded, by_length
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.sampling.encoding import encode_prompt, tasks_of_prompts
from lenvm_rl.sampling.fill import fill
from lenvm_rl.sampling.run import (
    OVER_CONTEXT,
    Engine,
    Failure,
    SamplingRun,
    TokenSampling,
    forced_end,
)
from lenvm_rl.sampling.server.engine import ServerEngine, ServerSettings
from lenvm_rl.sampling.transformers.engine import TransformersEngine

Grader = Callable[[str, str], bool]
"""(response text, ground truth) -> correct or wrong; never raises."""
QUALITY = ("logprob", "repetition", "full_sentence")
"""Names of `Outcome.quality`."""
_ROOM = 128  # tokens that a target in words may add to a prompt
_PASS_LOGITS = 1 << 27  # of a forward pass of the policy: 512 MiB of float32


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
                self.sampling
                if arm.guides is None
                else TokenSampling(temperature=self.sampling.temperature, seed=seed),
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
        None if rollouts is not None else lenvm,
        max_length=longest + _ROOM + max_tokens,
        max_candidates=sampling.top_k,
        max_batch=max_batch,
        chat_template_args=chat_template_args,
    )
    engine = (lambda fields: here) if rollouts is None else None
    return Source(engine=engine, policy=here.model, **common)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One completion, measured."""

    prompt: int
    """Index of its prompt."""
    token_ids: Sequence[int] = ()
    """Of the response, without EOS."""
    text: str = ""
    """The same as text."""
    ended: bool = False
    """Whether it ended before the token limit, by itself or because guidance forced EOS."""
    forced: bool = False
    """Whether guidance forced EOS."""
    came: bool = True
    """Whether there is a completion at all: False where an engine could not make it."""
    correct: bool | None = None
    """Whether the grader accepts it; an unfinished answer is wrong. None without a grader."""
    logprobs: Sequence[float] = ()
    """Log-probability (nats) of each of its tokens under the unguided policy at temperature 1, EOS
    included; empty where the policy was not asked."""

    @property
    def length(self) -> int:
        """Response tokens without EOS."""
        return len(self.token_ids)

    @property
    def logprob(self) -> float:
        """Mean of `logprobs` (nats/token); NaN where there are none."""
        return mean(self.logprobs)

    @property
    def quality(self) -> dict[str, float]:
        """What the text is worth whatever its length: `logprob`, `repetition` and `full_sentence`,
        see `lenvm_rl.evals.text_quality`."""
        return {
            "logprob": self.logprob,
            "repetition": repetition(self.token_ids),
            "full_sentence": float(ends_sentence(self.text)),
        }

    def truncated(self, limit: int, tokenizer: Any) -> Outcome:
        """What `max_tokens=limit` leaves of it: unfinished, and so wrong, where it was longer."""
        if not self.came or (self.ended and self.length <= limit):
            return self
        ids = self.token_ids[:limit]
        return replace(
            self,
            token_ids=ids,
            text=tokenizer.decode(ids, skip_special_tokens=True),
            ended=False,
            correct=None if self.correct is None else False,
            logprobs=self.logprobs[:limit],
        )


def mean_quality(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means of `Outcome.quality` where it is defined."""
    found = [outcome.quality for outcome in outcomes]
    return {name: mean([quality[name] for quality in found]) for name in QUALITY}


def read_outcomes(
    path: str | Path,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    *,
    policy: Any | None = None,
    grader: Grader | None = None,
    n: int | None = None,
) -> list[Outcome]:
    """Outcomes of a rollout file: `n` of each prompt side by side, missing ones too.

    Args:
        prompts: of which the file holds completions; `ground_truth` is what the grader gets.
        policy: the unguided transformers causal LM; None leaves log-probabilities undefined.
        grader: None judges nothing.
        n: completions of each prompt, sample_id 0 to n - 1; None: as many as the file has.
    Raises:
        ValueError: a prompt that is none of `prompts`; and see `RolloutReader`.
    """
    index = {prompt.prompt_id: i for i, prompt in enumerate(prompts)}
    reader = RolloutReader(path)
    rows: dict[tuple[int, int], Rollout] = {}
    for row in cast(Iterator[Rollout], reader.iter_rows()):
        if row.prompt_id not in index:
            raise ValueError(
                f"{path} holds completions of prompt {row.prompt_id!r}, which is not among the "
                f"{len(prompts)} prompts given: name the prompts that it was sampled from."
            )
        rows[index[row.prompt_id], row.sample_id] = row
    if n is None:
        n = 1 + max(sample_id for _, sample_id in rows)
    keys = [(i, k) for i in range(len(prompts)) for k in range(n)]
    logprobs: dict[tuple[int, int], Sequence[float]] = dict.fromkeys(rows, ())
    if policy is not None:
        found = [key for key in keys if key in rows]
        eos = list(reader.metadata["eos_ids"] or ())[:1]
        texts = [(rows[key].prompt_ids, _with_end(rows[key], eos)) for key in found]
        logprobs |= zip(found, policy_logprobs(policy, texts), strict=True)

    def outcome(key: tuple[int, int]) -> Outcome:
        if key not in rows:
            return Outcome(prompt=key[0], came=False, correct=None if grader is None else False)
        row, truth = rows[key], prompts[key[0]].ground_truth
        content = row.response_ids[: row.length - (row.finish_reason == "stop")]
        ended, correct = row.finish_reason == "stop" or forced_end(row), None
        if grader is not None:
            text = tokenizer.decode(row.response_ids, skip_special_tokens=True)
            correct = ended and truth is not None and bool(grader(text, truth))
        return Outcome(
            prompt=key[0],
            token_ids=content,
            text=tokenizer.decode(content, skip_special_tokens=True),
            ended=ended,
            forced=forced_end(row),
            correct=correct,
            logprobs=logprobs[key],
        )

    return [outcome(key) for key in keys]


def _with_end(row: Rollout, eos: Sequence[int]) -> list[int]:
    """Response tokens with the EOS that guidance forced, which is not in the row."""
    return [*row.response_ids, *(eos if forced_end(row) else ())]


@torch.inference_mode()
def policy_logprobs(
    policy: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[list[float]]:
    """Log-probabilities (nats, temperature 1) of the tokens of each response given its prompt.

    Args:
        policy: a transformers causal LM.
        rows: (prompt ids, response ids), each with at least one token.
    """
    device = next(policy.parameters()).device
    tokens = _PASS_LOGITS // policy.get_output_embeddings().weight.shape[0]
    found: list[list[float]] = [[] for _ in rows]
    for batch in by_length([len(prompt) + len(response) for prompt, response in rows], tokens):
        padded = Padded.of([rows[i] for i in batch])
        states = padded.states.to(device)
        logits = policy(input_ids=padded.ids.to(device), use_cache=False).logits.float()
        taken = logits.gather(-1, padded.next_ids.to(device)[..., None])[..., 0]
        for i, logprobs, mine in zip(batch, taken - logits.logsumexp(-1), states, strict=True):
            found[i] = logprobs[mine].tolist()
    return found


def mean(values: Sequence[float | bool | None]) -> float:
    """Mean of those that are defined; NaN where none is."""
    known = [x for x in values if x is not None and not math.isnan(x)]
    return sum(known) / len(known) if known else math.nan
