"""LIFEBench: does a policy write as long as it is asked to, in tokens or in words?

Every prompt is asked for every target in every way (equal to, at most, at least), and the guide
gets the same control as the sentence. (The reference's shipped configuration guides by `equal`
throughout; table 2 has an At Least below the unguided policy's, which agrees with that.) Methods:

    unguided    the sentence alone
    guided      the sentence, and the LenVM with the control and target that it names
    cut         the unguided samples, cut at the target (`max_tokens`)
    countdown   the sentence and CAPEL's countdown (`lifebench_tasks`), unguided, markers removed

A completion fails, and scores 0, when it does not end within `max_tokens`, when it is at most one
token (word) long, or when none came; failures are never dropped. Lengths are tokens without EOS, or
words by the benchmark's own count. What the two official programs would print is in the table
`official`. One ratio per language, tokens per word of the unguided samples, gives the guide and the
cut their tokens when targets are words, and the countdown its words when targets are tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lenvm_rl.evals.length_control.lifebench_report import LifebenchReport, lifebench_report
from lenvm_rl.evals.length_control.lifebench_settings import LifebenchSettings
from lenvm_rl.evals.length_control.lifebench_tasks import (
    asking,
    asks_for_length,
    count_words,
    counting_down,
    language,
    without_markers,
)
from lenvm_rl.evals.outcomes import Grader, measure
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.completion_cache import Generate
from lenvm_rl.sampling.each_prompt import sample_each
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.sampling.transformers.sampler import Completion

_TOKENS_PER_COUNT = 8  # a marker like <128> and its word: a countdown gets at least so much room


def evaluate_lifebench(
    generate: Generate,
    policy: Any | None,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    grader: Grader | None = None,
    settings: LifebenchSettings | None = None,
    notify: Callable[[str], None] = lambda what: None,
) -> LifebenchReport:
    """Ask, sample and score everything.

    Args:
        generate: guided sampling of the policy, in process or by a server. A completion that could
            not be made has finish_reason "error".
        policy: the same policy as a transformers causal LM, for log-probabilities; None leaves
            them undefined.
        prompts: with places for control and target (`lifebench_tasks`), or without: a policy that
            reads no instructions is asked nothing, and guided all the same.
        grader: None leaves accuracy undefined.
        notify: told what is sampled next.
    """
    run = _Run(generate, policy, tokenizer, prompts, grader, settings or LifebenchSettings())
    return run.report(notify)


class _Run:
    """The samples of one evaluation; equal requests are sampled once."""

    def __init__(
        self,
        generate: Generate,
        policy: Any | None,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        grader: Grader | None,
        settings: LifebenchSettings,
    ):
        self.generate, self.policy, self.tokenizer = generate, policy, tokenizer
        self.prompts, self.grader, self.settings = prompts, grader, settings
        self.languages = [language(prompt) for prompt in prompts]
        self._sampled: dict[Any, list[_Answer]] = {}

    def report(self, notify: Callable[[str], None]) -> LifebenchReport:
        """Sample every cell; unguided comes first, because ratios are read off it."""
        cells = [(c, n) for c in self.settings.controls for n in self.settings.targets]
        free = {}
        for control, target in cells:
            notify(f"unguided {control} {target}")
            free[control, target] = self._sample(self._asked(control, target), "unguided")
        ratios = self._tokens_per_word([a for answers in free.values() for a in answers])
        points: list[dict[str, Any]] = []
        for control, target in cells:
            for method in self.settings.methods:
                notify(f"{method} {control} {target}")
                answers = self._answers(method, control, target, free[control, target], ratios)
                points += [self._row(method, control, target, answer) for answer in answers]
        return lifebench_report(points, self.settings, ratios, asked=self._in_words)

    @property
    def _in_words(self) -> bool:
        return any(map(asks_for_length, self.prompts))

    def _answers(
        self,
        method: str,
        control: str,
        target: int,
        free: list[_Answer],
        ratios: dict[str, float],
    ) -> list[_Answer]:
        if method == "unguided":
            return free
        words = self.settings.unit == "words"
        scale = {lang: ratio if words else 1.0 for lang, ratio in ratios.items()}
        tokens = [max(1, round(target * scale[lang])) for lang in self.languages]
        if method == "truncated":
            return [self._truncated(answer, tokens[answer.prompt]) for answer in free]
        asked = self._asked(control, target)
        if method == "guided":
            guides = [
                GuidanceSettings(
                    mode=control,
                    target=n,
                    top_k=self.settings.top_k,
                    min_p=self.settings.min_p,
                    short_weight=self.settings.short_weight,
                )
                for n in tokens
            ]
            return self._sample(asked, f"guided-{control}-{target}", guides)
        counts = [
            target if words else max(1, round(target / ratios[lang])) for lang in self.languages
        ]
        counting = [counting_down(p, n) for p, n in zip(asked, counts, strict=True)]
        room = max(self.settings.max_tokens, _TOKENS_PER_COUNT * max(counts))
        counted = self._sample(counting, "countdown", max_tokens=room)
        return [self._uncounted(answer) for answer in counted]

    def _asked(self, control: str, target: int) -> list[Prompt]:
        asked = (asking(p, control, target, unit=self.settings.unit) for p in self.prompts)
        return [_prefixed(prompt, self.settings.prefix) for prompt in asked]

    def _sample(
        self,
        prompts: Sequence[Prompt],
        name: str,
        guides: Sequence[GuidanceSettings] | None = None,
        max_tokens: int | None = None,
    ) -> list[_Answer]:
        ids = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        key = (name, tuple(map(tuple, ids)))
        if key not in self._sampled:
            sampled = sample_each(
                self.generate,
                prompts,
                ids,
                samples=self.settings.samples,
                max_tokens=max_tokens or self.settings.max_tokens,
                seed=self.settings.seed,
                name=name,
                top_k=self.settings.top_k,
                min_p=self.settings.min_p,
                guides=guides or [None] * len(prompts),
            )
            self._sampled[key] = self._measured(ids, sampled)
        return self._sampled[key]

    def _measured(
        self, ids: Sequence[Sequence[int]], sampled: list[tuple[int, Completion]]
    ) -> list[_Answer]:
        truths = [prompt.ground_truth for prompt in self.prompts]
        outcomes = measure(self.policy, self.tokenizer, ids, truths, sampled, self.grader)
        answers = []
        for outcome, (index, completion) in zip(outcomes, sampled, strict=True):
            content = completion.token_ids[: outcome.length]
            answers.append(
                _Answer(
                    prompt=index,
                    token_ids=content,
                    text=self.tokenizer.decode(content, skip_special_tokens=True),
                    tokens=outcome.length,
                    ended=outcome.ended,
                    came=completion.finish_reason != "error",
                    right=outcome.right,
                    logprob=outcome.logprob,
                )
            )
        return answers

    def _truncated(self, answer: _Answer, limit: int) -> _Answer:
        """What `max_tokens=limit` leaves; it counts as ended, as it stops where it was told to."""
        if answer.tokens <= limit and answer.ended:
            return answer
        kept = answer.token_ids[:limit]
        return _Answer(
            prompt=answer.prompt,
            token_ids=kept,
            text=self.tokenizer.decode(kept, skip_special_tokens=True),
            tokens=len(kept),
            ended=True,
            came=answer.came,
            right=None if answer.right is None else False,
            logprob=answer.logprob,
        )

    def _uncounted(self, answer: _Answer) -> _Answer:
        """A countdown without its markers."""
        text = without_markers(answer.text)
        kept = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return _Answer(**{**vars(answer), "text": text, "token_ids": kept, "tokens": len(kept)})

    def _tokens_per_word(self, answers: Sequence[_Answer]) -> dict[str, float]:
        """Per language; 1 where the unguided samples have no words."""
        ratios = {}
        for lang in sorted(set(self.languages)):
            mine = [answer for answer in answers if self.languages[answer.prompt] == lang]
            words = sum(count_words(answer.text) for answer in mine)
            tokens = sum(answer.tokens for answer in mine)
            ratios[lang] = tokens / words if words and tokens else 1.0
        return ratios

    def _row(self, method: str, control: str, target: int, answer: _Answer) -> dict[str, Any]:
        words = count_words(answer.text)
        length = words if self.settings.unit == "words" else answer.tokens
        extra = self.prompts[answer.prompt].extra
        return {
            "control": control,
            "method": method,
            "target": target,
            "prompt": answer.prompt,
            "language": self.languages[answer.prompt],
            "category": str(extra.get("category", "")),
            "length": length,
            "tokens": answer.tokens,
            "words": words,
            "came": answer.came,
            "failed": not answer.came or not answer.ended or length <= 1,
            "right": answer.right,
            "logprob": answer.logprob if answer.came else math.nan,
        }


def _prefixed(prompt: Prompt, prefix: str) -> Prompt:
    if not prefix:
        return prompt
    *before, last = prompt.messages
    return replace(prompt, messages=[*before, {**last, "content": prefix + last["content"]}])


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One completion as it is scored; `ended` is true of a cut, which stops where it should."""

    prompt: int
    token_ids: Sequence[int]
    text: str
    tokens: int
    ended: bool
    came: bool
    right: bool | None
    logprob: float
