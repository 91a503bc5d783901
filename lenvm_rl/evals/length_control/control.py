"""Does a policy end where it is asked to? Guided length control beside its baselines.

For every prompt, targets are quantiles of the policy's own lengths there, so that each can be
reached (or given lengths, the same for all prompts). Every control (equal, at_most, at_least) is
asked for at every target. Beside the guided completions:

    unguided   the policy's own samples, from the same candidates, scored against the same targets
    cut        the same samples, cut at the target (`max_tokens`): what engines offer today
    prompted   the target in words, for policies that follow instructions (optional)

Reported per control and method: Length Score and deviation (`core.lifebench`), accuracy, the share
that ended by itself, and the mean log-probability of the text under the unguided policy, which
says how far guidance has left it. The target counts response tokens without EOS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lenvm_rl.core import CONTROLS
from lenvm_rl.evals.length_control.control_report import ControlReport, make_report, rows_of
from lenvm_rl.evals.outcomes import Grader, Outcome, measure
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.completion_cache import Generate
from lenvm_rl.sampling.each_prompt import MIN_P, sample_each
from lenvm_rl.sampling.encoding import encode_prompt

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """What to sample."""

    controls: Sequence[str] = CONTROLS
    quantiles: Sequence[float] = QUANTILES
    """Of each prompt's own unguided lengths: the targets."""
    targets: Sequence[int] | None = None
    """Lengths in tokens for all prompts, instead of quantiles."""
    samples: int = 4
    """Guided completions per prompt, control and target."""
    unguided_samples: int = 32
    """Unguided completions per prompt: the baselines, and what targets are read off."""
    max_tokens: int = 512
    seed: int = 0
    prompt_template: str | None = None
    """Adds the baseline `prompted`: appended to the user message, with `{target}` in it."""
    top_k: int = 20
    """Candidates per step, at most ..."""
    min_p: float = MIN_P
    """... and none below this share of the most probable one's probability."""
    short_weight: float = 5.0
    """equal: what a token too few costs, in tokens too many. The Length Score falls 2.5 times as
    fast below the target as above it (5 |d| against 2 d); and a continuation is valued as the
    policy would write it unguided, so guidance can still end it earlier, but not make it longer. On
    the shipped policy 1, 2.5, 5 and 10 score 82, 89, 92 and 93; 1 is the paper's distance."""

    def __post_init__(self) -> None:
        if not all(0 < q < 1 for q in self.quantiles):
            raise ValueError(f"quantiles must lie in (0, 1), got {list(self.quantiles)}.")
        if self.targets is not None and not all(n >= 1 for n in self.targets):
            raise ValueError(f"targets must be at least 1 token, got {list(self.targets)}.")
        if self.unguided_samples < 4:
            raise ValueError(
                f"unguided_samples is {self.unguided_samples}: the range of lengths that a prompt "
                "can reach is read off them, take at least 4."
            )
        GuidanceSettings(top_k=self.top_k, min_p=self.min_p, short_weight=self.short_weight)
        if self.prompt_template is not None and "{target}" not in self.prompt_template:
            raise ValueError(
                f"prompt_template {self.prompt_template!r} does not say the target: put "
                "{target} where the number belongs."
            )


def evaluate_control(
    generate: Generate,
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    grader: Grader | None,
    settings: ControlSettings | None = None,
    notify: Callable[[str], None] = lambda what: None,
) -> ControlReport:
    """Sample and score everything.

    Args:
        generate: guided sampling of the policy, in process or by an engine.
        policy: the same policy as a transformers causal LM, for log-probabilities.
        prompts: what to answer; `ground_truth` is what the grader gets.
        grader: None leaves accuracy undefined (NaN).
        notify: told what is sampled next.
    """
    settings = settings or ControlSettings()
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    truths = [prompt.ground_truth for prompt in prompts]

    def sample(
        name: str, ids: Sequence[Sequence[int]], guides: Sequence[GuidanceSettings | None]
    ) -> list[Outcome]:
        completions = sample_each(
            generate,
            prompts,
            ids,
            samples=settings.unguided_samples if name == "free" else settings.samples,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
            name=name,
            top_k=settings.top_k,
            min_p=settings.min_p,
            guides=guides,
        )
        return measure(policy, tokenizer, ids, truths, completions, grader)

    nothing = [None] * len(prompts)
    notify("unguided")
    unguided = sample("free", ids, nothing)
    if settings.targets is None:
        targets = reachable_targets(unguided, len(prompts), settings.quantiles)
    else:
        targets = {str(n): [n] * len(prompts) for n in settings.targets}
    points: list[dict[str, Any]] = []
    for control in settings.controls:
        points += rows_of("unguided", control, targets, unguided)
        points += rows_of("truncated", control, targets, unguided)
        for goal, asked in targets.items():
            notify(f"{control} {goal}")
            name, here = f"{control}-{goal}", {goal: asked}
            guides = [
                GuidanceSettings(
                    mode=control,
                    target=n,
                    top_k=settings.top_k,
                    min_p=settings.min_p,
                    short_weight=settings.short_weight,
                )
                for n in asked
            ]
            points += rows_of("guided", control, here, sample(name, ids, guides))
            if settings.prompt_template is not None:
                said = [
                    encode_prompt(tokenizer, _asking(prompt, settings.prompt_template, n))
                    for prompt, n in zip(prompts, asked, strict=True)
                ]
                points += rows_of("prompted", control, here, sample(f"{name}-said", said, nothing))
    return make_report(points, unguided, settings)


def reachable_targets(
    outcomes: Sequence[Outcome], prompts: int, quantiles: Sequence[float]
) -> dict[str, list[int]]:
    """ "p<percent>" -> target of every prompt: lengths that the prompt's own completions have.

    Raises:
        ValueError: a prompt of which no completion ended.
    """
    lengths: list[list[int]] = [[] for _ in range(prompts)]
    for outcome in outcomes:
        if outcome.ended:
            lengths[outcome.prompt].append(outcome.length)
    for index, found in enumerate(lengths):
        if not found:
            raise ValueError(
                f"no completion of prompt {index} ended within the token limit, so nothing is "
                "known of the lengths it can reach: raise max_tokens or unguided_samples."
            )
    ordered = [sorted(found) for found in lengths]
    return {
        f"p{100 * q:g}": [
            max(1, found[min(int(q * len(found)), len(found) - 1)]) for found in ordered
        ]
        for q in quantiles
    }


def _asking(prompt: Prompt, template: str, target: int) -> Prompt:
    *before, last = prompt.messages
    said = {**last, "content": last["content"] + template.replace("{target}", str(target))}
    return Prompt(
        prompt_id=prompt.prompt_id, messages=[*before, said], ground_truth=prompt.ground_truth
    )
