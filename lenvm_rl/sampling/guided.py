"""How is a small policy sampled under length guidance, without a serving engine?

    scorer = ExactScorer(lenvm, slots=16, max_length=2048, max_candidates=20)
    completions = guided_completions(
        policy,
        scorer,
        [Request(prompt_ids, max_tokens=512, seed=7)] * 2,
        [GuidanceSettings(mode="at_most", target=120), None],
        max_candidates=20,
    )

The policy decodes all requests in one batch and `lenvm_rl.guidance.Guide` steers those that ask
for it, with the same rules as inside a serving engine. Meant for evaluations of small models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.guidance import CandidateScorer, GuidanceSettings, Guide
from lenvm_rl.sampling.transformers.engine import GuidanceHook
from lenvm_rl.sampling.transformers.sampler import Completion, ContinuousSampler, Request


def guided_completions(
    policy: Any,
    scorer: CandidateScorer,
    requests: Sequence[Request],
    settings: Sequence[GuidanceSettings | None],
    *,
    max_candidates: int = 20,
    max_batch: int = 16,
    eos_token_ids: Sequence[int] | int | None = None,
    seed: int | None = None,
    progress: Callable[[int, Completion], None] | None = None,
) -> list[Completion]:
    """Completions of `requests` under `settings`, in their order.

    A request without settings, or whose settings change nothing, gets the very tokens that
    `ContinuousSampler` gives it alone. Completions carry the log-probabilities of the guided
    distribution. A request's own top-k, top-p and min-p restrict that distribution once more;
    which candidates guidance chooses between is said in the settings.

    Args:
        policy: transformers causal LM, or the directory or hub name of one.
        scorer: values the candidates of all guided requests.
        requests: what to sample; give them seeds for samples that can be repeated.
        settings: one per request; None is unguided.
        max_candidates: most candidates per step and row; at most what the scorer takes.
        max_batch: requests that decode together; at most the scorer's slots.
        eos_token_ids: None reads the policy's generation config, and of a directory the
            tokenizer's too.
        seed: stream for requests without a seed.
        progress: called as `progress(index, completion)` when a request finishes.
    Raises:
        ValueError: another number of settings than requests, a gamma that is not the LenVM's, a
            policy with more tokens than the LenVM knows, or no EOS.
        PoolExhausted: max_batch is larger than the scorer's slots.
    """
    if len(settings) != len(requests):
        raise ValueError(
            f"{len(requests)} requests but {len(settings)} settings: give one per request, None "
            "for those to leave unguided."
        )
    asked = {i: s for i, s in enumerate(settings) if s is not None}
    for s in asked.values():
        s.check_model(scorer.config)
    options = {"eos_token_ids": eos_token_ids, "max_batch": max_batch, "seed": seed}
    if isinstance(policy, (str, Path)):
        sampler = ContinuousSampler.from_pretrained(str(policy), **options)
    else:
        sampler = ContinuousSampler(policy, **options)
    guide = Guide(scorer, eos_token_ids=sampler.eos_token_ids, max_candidates=max_candidates)
    guide.check_vocabulary(sampler.vocab_size)
    if any(not s.changes_nothing for s in asked.values()):
        sampler.hook = GuidanceHook(guide, asked)
    try:
        return sampler.generate(requests, progress)
    finally:
        for i in asked:  # a failed run leaves no slot open
            guide.close(i)
