"""A policy directory and a LenVM directory that guides it, in this process; control of both.

Loads both, chooses the scorer that fits the LenVM's head, samples with transformers. For policies
that need a serving engine there is `served.ServedSampler`, which samples from a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lenvm_rl.evals.length_control.control import ControlSettings, evaluate_control
from lenvm_rl.evals.length_control.control_report import ControlReport
from lenvm_rl.evals.outcomes import Grader
from lenvm_rl.guidance import GuidanceSettings
from lenvm_rl.guidance.heads.q_head import load_lenvm, make_scorer
from lenvm_rl.model import check_tokenizer, load_tokenizer
from lenvm_rl.model.decoder import context_length
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts.progress import progress_bar
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.sampling.guided import guided_completions
from lenvm_rl.sampling.transformers.sampler import Completion, ContinuousSampler, Request


class GuidedPolicy:
    """A policy with its tokenizer, and a LenVM that guides it.

    Args:
        policy: directory or hub name of a causal LM.
        lenvm: directory of the value model.
        max_length: tokens of the longest prompt and response: the size of the scorer's slots.
        max_batch: requests that decode together.
        top_k: candidates per step.
        chat_template_args: what the chat template gets besides the messages.
        progress: draw a bar on stderr for every set of completions.
    Raises:
        ValueError: a LenVM of another tokenizer, or without gamma.
    """

    def __init__(
        self,
        policy: str | Path,
        lenvm: str | Path,
        *,
        max_length: int,
        max_batch: int = 64,
        top_k: int = 20,
        chat_template_args: dict[str, Any] | None = None,
        progress: bool = False,
    ):
        self.tokenizer = load_tokenizer(policy, chat_template_args=chat_template_args)
        sampler = ContinuousSampler.from_pretrained(str(policy), tokenizer=self.tokenizer)
        self.model, self.eos_token_ids = sampler.model, sorted(sampler.eos_token_ids)
        lenvm_model = load_lenvm(lenvm, self.model.dtype).to(self.model.device)
        check_tokenizer(lenvm_model.config, self.tokenizer)
        self.scorer = make_scorer(
            lenvm_model,
            slots=max_batch,
            max_length=min(max_length, context_length(self.model.config)),
            max_candidates=top_k,
            policy_states=True,
        )
        self.max_batch, self.top_k, self.progress = max_batch, top_k, progress
        self._next = "sampling"

    def name_next(self, what: str) -> None:
        """What the next progress bar says."""
        self._next = what

    def generate(
        self, requests: Sequence[Request], settings: Sequence[GuidanceSettings | None]
    ) -> list[Completion]:
        """Completions of `requests`, in their order; see `evals.control.Generate`."""
        with progress_bar(self._next, total=len(requests), shown=self.progress) as advance:
            return guided_completions(
                self.model,
                self.scorer,
                requests,
                settings,
                max_candidates=self.top_k,
                max_batch=self.max_batch,
                eos_token_ids=self.eos_token_ids,
                progress=lambda index, completion: advance(1),
            )


def run_control(
    policy: str | Path,
    lenvm: str | Path,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    grader: Grader | None,
    settings: ControlSettings,
    max_batch: int = 64,
    chat_template_args: dict[str, Any] | None = None,
    progress: bool = False,
) -> ControlReport:
    """`evaluate_control` on directories; writes control.json, tables and control.png into `out`."""
    guided = GuidedPolicy(
        policy,
        lenvm,
        max_length=longest_prompt(policy, prompts, chat_template_args) + settings.max_tokens,
        max_batch=max_batch,
        top_k=settings.top_k,
        chat_template_args=chat_template_args,
        progress=progress,
    )
    report = evaluate_control(
        guided.generate,
        guided.model,
        guided.tokenizer,
        prompts,
        grader=grader,
        settings=settings,
        notify=guided.name_next,
    )
    report.save(out)
    return report


def longest_prompt(
    policy: str | Path,
    prompts: Sequence[Prompt],
    chat_template_args: dict[str, Any] | None = None,
) -> int:
    """Tokens of the longest prompt, with room for a target in words."""
    tokenizer = load_tokenizer(policy, chat_template_args=chat_template_args)
    return max(len(encode_prompt(tokenizer, prompt)) for prompt in prompts) + 128
