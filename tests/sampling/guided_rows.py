"""Completions under guidance, as an engine in this process makes them, without a file."""

from lenvm_rl.guidance import Guide
from lenvm_rl.sampling.run import EngineFacts, Request, Task
from lenvm_rl.sampling.transformers.engine import TransformersEngine
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler


def guided_rows(policy, scorer, asked, settings, *, max_candidates=20, max_batch=16):
    """Rows of `asked`, requests of the sampler, under `settings`, in their order.

    Args:
        policy: a transformers causal LM, or its directory.
        settings: one per request; None, or what changes nothing: unguided.
    """
    if isinstance(policy, str):
        sampler = ContinuousSampler.from_pretrained(policy, max_batch=max_batch)
    else:
        sampler = ContinuousSampler(policy, max_batch=max_batch)
    guide = Guide(scorer, eos_token_ids=sampler.eos_token_ids, max_candidates=max_candidates)
    engine = TransformersEngine(sampler, EngineFacts(policy="", tokenizer_sha=""), guide=guide)
    requests = []
    for number, (request, guidance) in enumerate(zip(asked, settings, strict=True)):
        sampling = {name: x for name, x in vars(request).items() if name != "prompt_ids"}
        task = Task(
            prompt_id=str(number),
            prompt_ids=request.prompt_ids,
            n=1,
            max_tokens=request.max_tokens,
            guidance=guidance,
        )
        requests.append(
            Request(task=task, sample_id=0, sampling=sampling, guidance=task.steered_by)
        )
    first = sorted(requests, key=lambda request: -request.task.max_tokens)  # as `generate` does
    rows = {int(row.prompt_id): row for row in engine(iter(first), 0)}
    return [rows[number] for number in range(len(requests))]
