"""How does any OpenAI-compatible server fill a rollout file?

A request asks for several completions of one prompt, which share its prefill; many are in flight.
The random stream is the server's: rows carry no seed unless seeds are sent. A vLLM server draws
the same numbers again after a restart, so give it another `--seed` then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lenvm_rl.model import load_tokenizer, tokenizer_sha
from lenvm_rl.model.policy_facts import policy_configs, policy_facts
from lenvm_rl.model.tokens import token_ids_of
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts.text import TextCodec
from lenvm_rl.sampling.encoding import tasks_of_prompts
from lenvm_rl.sampling.fill import FLUSH_SECONDS, SamplingReport, fill
from lenvm_rl.sampling.run import Failure, SamplingRun
from lenvm_rl.sampling.server.engine import ServerEngine, ServerSettings


def sample_from_servers(
    settings: ServerSettings,
    tokenizer: str | Path,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    n: int = 8,
    max_tokens: int = 1024,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    chat_template_args: dict[str, Any] | None = None,
    end_tokens: Sequence[str] = (),
    reasoning: str | None = None,
    vocab_size: int | None = None,
    progress: bool = False,
    flush_seconds: float = FLUSH_SECONDS,
    on_failure: Callable[[Failure], None] | None = None,
) -> SamplingReport:
    """Sample `n` completions of every prompt through servers into the rollout directory `out`.

    Called again with the same arguments, it samples what is missing. The arguments are those of
    `lenvm_rl.sampling.transformers.to_file.sample_to_file`; `tokenizer` is the policy's directory
    or hub name.

    Args:
        end_tokens: tokens that end a response, by text or id, if the tokenizer and the generation
            configuration beside it do not say it.
        reasoning: how the policy writes reasoning, see `lenvm_rl.rollouts.text.reasoning_of`.
        vocab_size: rows of the policy's output layer, where no configuration lies beside its
            tokenizer.
    Raises:
        ValueError: no server answers, one does not have the model, or `out` holds completions
            of another run.
    """
    tokens = load_tokenizer(tokenizer, chat_template_args=chat_template_args)
    sha = tokenizer_sha(tokens)
    named = token_ids_of(tokens, end_tokens)
    from_text = settings.token_ids == "text"
    codec = None
    facts = policy_facts(tokenizer, tokens, end_ids=named, vocab_size=vocab_size)
    if from_text:
        known = policy_configs(tokenizer)
        codec = TextCodec.from_tokenizer(
            tokens,
            tokenizer_sha=sha,
            end_ids=named,
            generation=known.generation,
            config=known.config,
            chat=settings.chat or bool(getattr(tokens, "chat_template", None)),
            reasoning=reasoning,
        )
        facts = replace(facts, eos_ids=sorted(codec.ends))
    run = SamplingRun(
        tasks=tasks_of_prompts(tokens, prompts, n=n, max_tokens=max_tokens),
        policy=settings.model,
        tokenizer_sha=sha,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        own_seeds=settings.own_seeds,
        retokenized=from_text,
        **facts.of_run(),
    )
    engine = ServerEngine(settings, run, codec)
    return fill(
        run,
        out,
        engine,
        progress=progress,
        flush_seconds=flush_seconds,
        on_failure=on_failure,
    )
