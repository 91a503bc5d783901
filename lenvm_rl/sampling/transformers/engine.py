"""Engine in this process: transformers decodes, and a LenVM steers the requests that ask for it.

    engine = TransformersEngine.load(policy, lenvm, max_length=2048)
    run = SamplingRun.of(engine, tasks, TokenSampling(seed=1))
    fill(run, "runs/rollouts", engine)

Guided and unguided requests share the batch, under the same rules as inside a serving engine. Every
completion has its own seed, so a run that was killed continues with what is missing, and the
finished file holds the same completions as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from lenvm_rl.guidance import GuidanceSettings, Guide, GuidedRow, History
from lenvm_rl.guidance.exact.memory import available_memory, in_units
from lenvm_rl.guidance.heads.q_head import load_lenvm, make_scorer, scorer_memory
from lenvm_rl.guidance.thinking import SegmentGuidance
from lenvm_rl.model import check_tokenizer, find_lenvm, load_tokenizer, tokenizer_sha
from lenvm_rl.model.decoder import cache_bytes_per_token, context_length
from lenvm_rl.model.policy import policy_facts
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts.ends import token_count
from lenvm_rl.rollouts.record import Rollout
from lenvm_rl.sampling.encoding import tasks_of_prompts
from lenvm_rl.sampling.fill import FLUSH_SECONDS, SamplingReport, fill
from lenvm_rl.sampling.run import (
    OVER_CONTEXT,
    EngineFacts,
    Failure,
    Request,
    SamplingRun,
    TokenSampling,
    lenvm_facts,
)
from lenvm_rl.sampling.transformers import sampler as decoding
from lenvm_rl.sampling.transformers.decode_batch import Running
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler

_SHARE = 0.8  # of free memory, for keys and values; the rest is for what a step computes


class GuidanceHook:
    """Makes a `Guide` the logits hook of a `ContinuousSampler`.

    Args:
        guide: what steers.
        settings: request id -> settings, read at every step; ids that are missing are sampled
            unguided.
    """

    def __init__(self, guide: Guide, settings: Mapping[Hashable, GuidanceSettings]):
        self.guide = guide
        self.settings = settings
        self._segment = guide.scorer.config.segment
        self._within: dict[Hashable, SegmentGuidance] = {}
        self.reads_hidden = bool(getattr(guide.scorer, "reads_policy", False))

    def apply(self, logits: Tensor, running: Sequence[Running], hidden: Tensor | None) -> None:
        """Write guided logits over the rows that ask for it."""
        rows = [
            self._row(index, row)
            for index, row in enumerate(running)
            if row.request_id in self.settings
        ]
        self.guide.apply(logits, [row for row in rows if row is not None], hidden=hidden)

    def _row(self, index: int, running: Running) -> GuidedRow | None:
        """What is steered in this step; None outside of the segment that the LenVM counts."""
        key, prompt = running.request_id, running.request.prompt_ids
        row = GuidedRow(
            index,
            key,
            self.settings[key],
            History(prompt, running.output),
            len(prompt),
            running.request.temperature,
        )
        if self._segment is None:
            return row
        if key not in self._within:
            self._within[key] = SegmentGuidance(self._segment, prompt)
        return self._within[key].row(row)

    def close(self, request_id: Hashable) -> None:
        """Free what the request held in the scorer."""
        self._within.pop(request_id, None)
        self.guide.close(request_id)


class TransformersEngine:
    """An `Engine` on transformers, guided or not.

    Args:
        sampler: decodes.
        facts: of the policy; see also `load`.
        guide: steers the requests with guidance; its scorer needs a slot for each row of the
            sampler's batch. None: such requests are refused.
        tokenizer: of the policy, for callers that render prompts.
    Raises:
        ValueError: a LenVM that does not know all tokens of the policy.
    """

    def __init__(
        self,
        sampler: ContinuousSampler,
        facts: EngineFacts,
        *,
        guide: Guide | None = None,
        tokenizer: Any = None,
    ):
        self.sampler, self.facts, self.tokenizer = sampler, facts, tokenizer
        self._guide = guide
        if guide is not None:
            guide.check_vocabulary(sampler.vocab_size)

    @classmethod
    def load(
        cls,
        policy: str | Path,
        lenvm: str | Path | None = None,
        *,
        max_length: int | None = None,
        max_candidates: int = 20,
        max_batch: int = 128,
        tokenizer: Any = None,
        chat_template_args: dict[str, Any] | None = None,
    ) -> Self:
        """Policy and LenVM from directories or hub names.

        Args:
            lenvm: guides; None: the policy alone.
            max_length: tokens of the longest prompt and response, the size of a guided request's
                slot; None: the policy's context.
            max_candidates: most candidates of a guided request per step; a larger top-k is cut.
            max_batch: requests that decode together at most, fewer where memory is short; does not
                change the completions.
            tokenizer: of the policy; None loads it.
            chat_template_args: what the chat template gets besides the messages.
        Raises:
            ValueError: a LenVM of another tokenizer, or without gamma; or memory for no request.
        """
        if tokenizer is None:
            tokenizer = load_tokenizer(policy, chat_template_args=chat_template_args)
        policy_facts(policy, tokenizer)  # refuses an end that nobody named
        sampler = ContinuousSampler.from_pretrained(str(policy), tokenizer=tokenizer, max_batch=1)
        context = context_length(sampler.model.config)
        longest = min(max_length or context, context)
        model = None
        if lenvm is not None:
            lenvm = find_lenvm(lenvm)
            model = load_lenvm(lenvm, sampler.model.dtype).to(sampler.device)
            check_tokenizer(model.config, tokenizer)
        max_batch = fitting_batch(
            sampler.model, model, max_batch, max_length=longest, max_candidates=max_candidates
        )
        sampler = ContinuousSampler(sampler.model, tokenizer=tokenizer, max_batch=max_batch)
        guide = None
        if model is not None:
            scorer = make_scorer(
                model,
                slots=max_batch,
                max_length=longest,
                max_candidates=max_candidates,
                policy_states=True,
            )
            guide = Guide(
                scorer, eos_token_ids=sampler.eos_token_ids, max_candidates=max_candidates
            )
        facts = facts_of(sampler, tokenizer, policy=str(policy), lenvm=lenvm)
        return cls(sampler, facts, guide=guide, tokenizer=tokenizer)

    @property
    def model(self) -> Any:
        """The policy as a transformers causal LM."""
        return self.sampler.model

    def __call__(self, requests: Iterator[Request], resumed: int) -> Iterator[Rollout | Failure]:
        """Completions as they finish; the sampler's queue stays a few batches long.

        Raises:
            ValueError: a request with guidance where there is no LenVM, or with a gamma that is not
                the LenVM's.
            PoolExhausted: the sampler's batch is larger than the scorer's slots.
        """
        del resumed  # every completion has a random stream of its own
        sampler = self.sampler
        running: dict[Hashable, Request] = {}
        guided: dict[Hashable, GuidanceSettings] = {}
        try:
            while True:
                while sampler.pending < 2 * sampler.max_batch and (request := next(requests, None)):
                    if request.guidance is not None:
                        self._check(request.guidance)
                        guided[request.key] = request.guidance
                        sampler.hook = sampler.hook or GuidanceHook(self._guide, guided)
                    refusal = self._submit(request)
                    if refusal is None:
                        running[request.key] = request
                    else:
                        yield refusal
                if not sampler.pending:
                    return
                for key, done in sampler.step():
                    guided.pop(key, None)
                    request = running.pop(key)
                    yield request.rollout(done.token_ids, done.finish_reason, done.logprobs)
        finally:
            for key in running:  # a run that fails leaves no row and no slot open
                sampler.abort(key)
            sampler.hook = None

    def _submit(self, request: Request) -> Failure | None:
        """Queue a request, or say why the model cannot take it."""
        ids = request.task.prompt_ids
        try:
            self.sampler.submit(decoding.Request(ids, **request.sampling), request.key)
        except ValueError as error:
            over = len(ids) >= self.sampler.context_length
            return request.failure(
                OVER_CONTEXT if over else "prompt beyond the vocabulary", str(error)
            )
        return None

    def _check(self, guidance: GuidanceSettings) -> None:
        if self._guide is None:
            raise ValueError(
                "there is nothing to guide by: name the value model's directory (--lenvm)."
            )
        guidance.check_model(self._guide.scorer.config)


def fitting_batch(
    policy: Any, lenvm: Any, wanted: int, *, max_length: int, max_candidates: int
) -> int:
    """How many requests can decode together, at most `wanted`: the keys and values of policy and
    LenVM at their longest take no more than four fifths of what is free.

    Raises:
        ValueError: not one fits.
    """
    free = available_memory(policy.device)
    each = (cache_bytes_per_token(policy.config, policy.dtype) or 0) * max_length
    padding = 0
    if lenvm is not None:
        memory = scorer_memory(
            lenvm.config,
            dtype=lenvm.model.dtype,
            max_candidates=max_candidates,
            fixed_shapes=policy.device.type == "cuda",
            policy_states=True,
        )
        each += memory.bytes_per_token * memory.columns(max_length)
        padding = memory.cache(0, max_length)
    if free is None or not each:
        return wanted
    room = int(_SHARE * free)
    fits = (room - padding) // each
    if fits < 1:
        raise ValueError(
            f"a request of {max_length:,} tokens takes {in_units(each + padding)} of keys and "
            f"values, {in_units(room, up=False)} of memory are there for them: ask for shorter "
            "responses (--max-tokens), use a smaller model, or free memory."
        )
    return min(wanted, fits)


def facts_of(
    sampler: ContinuousSampler,
    tokenizer: Any,
    *,
    policy: str,
    lenvm: str | Path | None = None,
) -> EngineFacts:
    """What rows and file say of a policy that transformers samples."""
    return EngineFacts(
        policy=policy,
        tokenizer_sha=tokenizer_sha(tokenizer),
        vocab_size=sampler.vocab_size,
        token_count=token_count(tokenizer),
        eos_ids=sorted(sampler.eos_token_ids),
        chat_template_args=dict(getattr(tokenizer, "chat_template_args", {})),
        lenvm=lenvm_facts(lenvm) if lenvm is not None else {},
    )


def sample_to_file(
    policy: str | Path,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    n: int = 8,
    max_tokens: int = 1024,
    lenvm: str | Path | None = None,
    guidance: GuidanceSettings | None = None,
    batch_size: int = 128,
    chat_template_args: dict[str, Any] | None = None,
    progress: bool = False,
    flush_seconds: float = FLUSH_SECONDS,
    on_failure: Callable[[Failure], None] | None = None,
    **sampling: Any,
) -> SamplingReport:
    """Sample `n` completions of every prompt into the rollout directory `out`.

    Called again with the same arguments after an interruption, it samples what is missing.

    Args:
        policy: directory or hub name of a causal LM with its tokenizer.
        prompts: chat messages; a policy without a chat template takes single user messages as
            plain text, with the special tokens its tokenizer adds.
        out: directory of shards.
        n: completions per prompt.
        max_tokens: longest response in tokens; the context length may cut earlier.
        lenvm, guidance: value model and what it steers for; None: the policy alone.
        batch_size: rows generated together; does not change the completions.
        chat_template_args: what the chat template gets besides the messages.
        progress, flush_seconds, on_failure: see `fill`.
        sampling: fields of `TokenSampling`: temperature, top_p, top_k, min_p, seed.
    Raises:
        ValueError: `out` holds rows sampled with other settings. A prompt that cannot be sampled is
            a failure, which the report counts.
    """
    tokenizer = load_tokenizer(policy, chat_template_args=chat_template_args)
    tasks = tasks_of_prompts(tokenizer, prompts, n=n, max_tokens=max_tokens, guidance=guidance)
    engine = TransformersEngine.load(
        policy,
        lenvm,
        max_length=max(len(task.prompt_ids) for task in tasks) + max_tokens if tasks else None,
        max_candidates=max(guidance.top_k if guidance else 0, 20),
        max_batch=batch_size,
        tokenizer=tokenizer,
    )
    run = SamplingRun.of(engine, tasks, TokenSampling(**sampling))
    return fill(
        run, out, engine, progress=progress, flush_seconds=flush_seconds, on_failure=on_failure
    )
