"""How are the completions of every prompt sampled, so that guided and unguided ones compare?"""

from __future__ import annotations

from collections.abc import Sequence

from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.completion_cache import Generate
from lenvm_rl.sampling.pictures import pictured
from lenvm_rl.sampling.run import completion_seed
from lenvm_rl.sampling.transformers.sampler import Completion, Request

MIN_P = GuidanceSettings.min_p


def sample_each(
    generate: Generate,
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    *,
    samples: int,
    max_tokens: int,
    seed: int,
    name: str,
    top_k: int,
    min_p: float,
    guides: Sequence[GuidanceSettings | None],
) -> list[tuple[int, Completion]]:
    """`samples` completions of every prompt, as (index of the prompt, completion).

    Unguided completions choose among the same candidates as guided ones: dropping improbable
    tokens alone makes a policy better, and guidance shall not get the credit for it.

    Args:
        ids: token ids of each prompt.
        name: of the random stream: the same name gives the same random numbers.
        top_k, min_p: the candidates, which guided requests name in their settings.
        guides: settings of each prompt.
    """
    free = [guide is None or guide.changes_nothing for guide in guides]
    which = [i for i in range(len(prompts)) for _ in range(samples)]
    requests = [
        Request(
            prompt_ids=ids[i],
            max_tokens=max_tokens,
            top_k=top_k if free[i] else 0,
            min_p=min_p if free[i] else 0.0,
            seed=completion_seed(seed, f"{name}/{prompts[i].prompt_id}", k % samples),
        )
        for k, i in enumerate(which)
    ]
    requests = [
        pictured(request, prompts[i]) if prompts[i].images else request
        for request, i in zip(requests, which, strict=True)
    ]
    return list(zip(which, generate(requests, [guides[i] for i in which]), strict=True))
