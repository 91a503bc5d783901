"""Measurement of the demo policy.

    python -m recipes.demo_policy.evaluate_policy [--policy DIR] [--json FILE]

Samples at temperature 1, the same number of problems for every number of operands, and reports
accuracy (overall, by style, by difficulty), lengths in tokens with EOS, the spread of the length
within a prompt, and the share cut at the token limit. Bare answers are rare, so their accuracy by
difficulty is also computed without sampling: the probability of the right number after
`the answer is`. The last line is one JSON object with all figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lenvm_rl.demo import policy_path, task
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request
from recipes.demo_policy import solutions

PERCENTILES = (1, 5, 50, 90, 99, 99.9)
HARD = 8  # chains of at least this many operands count as hard


@dataclass(frozen=True)
class Sample:
    """One sampled response."""

    problem: task.Problem
    text: str
    length: int
    """tokens, EOS included"""
    finished: bool
    """whether it ended by EOS"""

    @property
    def right(self) -> bool:
        """Whether the grader accepts it; a cut response is wrong."""
        return self.finished and task.grade(self.text, self.problem.answer)

    @property
    def style(self) -> str:
        """One of `task.STYLES`."""
        return task.style(self.text)


def sample_responses(
    policy: Path,
    problems: list[task.Problem],
    *,
    samples: int,
    temperature: float = 1.0,
    max_tokens: int = 480,
    seed: int = 0,
) -> list[Sample]:
    """Sample `samples` responses to each problem; consecutive samples share their problem.

    Temperature 0 is greedy decoding.
    """
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    sampler = ContinuousSampler(model, eos_token_ids=tokenizer.eos_token_id, seed=seed)
    jobs = [problem for problem in problems for _ in range(samples)]
    requests = [
        Request(_prompt_ids(tokenizer, problem), max_tokens=max_tokens, temperature=temperature)
        for problem in jobs
    ]
    found = []
    for problem, completion in zip(jobs, sampler.generate(requests), strict=True):
        ids, finished = completion.token_ids, completion.finish_reason == "stop"
        text = tokenizer.decode(ids[:-1] if finished else ids)
        found.append(Sample(problem, text, len(ids), finished))
    return found


@torch.inference_mode()
def bare_accuracy(policy: Path, problems: list[task.Problem]) -> dict[str, float]:
    """Probability of the right number after `the answer is`, by number of operands."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    found: dict[str, float] = {}
    for operands in sorted({problem.operands for problem in problems}):
        group = [problem for problem in problems if problem.operands == operands]
        answers = tokenizer([solutions.bare(problem.answer) for problem in group])["input_ids"]
        rows = [
            _prompt_ids(tokenizer, problem) + answer
            for problem, answer in zip(group, answers, strict=True)
        ]
        ids = torch.tensor(rows)  # chains of one difficulty have prompts of one length
        probabilities = model(input_ids=ids[:, :-1]).logits[:, -1].softmax(-1)
        found[str(operands)] = float(probabilities.gather(1, ids[:, -1:]).mean())
    return found


def _prompt_ids(tokenizer: PreTrainedTokenizerFast, problem: task.Problem) -> list[int]:
    chat = tokenizer.apply_chat_template(
        task.messages(problem), add_generation_prompt=True, return_dict=True
    )
    return chat["input_ids"]


def report(found: list[Sample]) -> dict:
    """Figures of a list of samples; accuracies and shares in [0, 1], lengths in tokens."""
    lengths = torch.tensor([sample.length for sample in found], dtype=torch.float64)
    by_problem: dict[task.Problem, list[float]] = {}
    for sample in found:
        by_problem.setdefault(sample.problem, []).append(float(sample.length))
    spreads = [torch.tensor(group) for group in by_problem.values() if len(group) > 1]
    ratios = torch.tensor([float(group.std() / group.mean()) for group in spreads])
    styles = {}
    for style in task.STYLES:
        group = [sample for sample in found if sample.style == style]
        easy = [sample for sample in group if sample.problem.operands <= 3]
        hard = [sample for sample in group if sample.problem.operands >= HARD]
        styles[style] = {
            "share": len(group) / len(found),
            "accuracy": _accuracy(group),
            "accuracy_2_3_operands": _accuracy(easy),
            f"accuracy_{HARD}_or_more_operands": _accuracy(hard),
            "mean_length": _mean(sample.length for sample in group),
        }
    difficulty = {}
    for operands in sorted({sample.problem.operands for sample in found}):
        group = [sample for sample in found if sample.problem.operands == operands]
        difficulty[str(operands)] = {
            "accuracy": _accuracy(group),
            "bare_accuracy": _accuracy([sample for sample in group if sample.style == "bare"]),
            "mean_length": _mean(sample.length for sample in group),
        }
    return {
        "samples": len(found),
        "problems": len(by_problem),
        "accuracy": _accuracy(found),
        "mean_length": float(lengths.mean()),
        "min_length": float(lengths.min()),
        "max_length": float(lengths.max()),
        "length_percentiles": {
            str(p): float(lengths.quantile(p / 100, interpolation="nearest")) for p in PERCENTILES
        },
        "std_over_mean_within_prompt": _mean(ratios.tolist()),
        "share_truncated": _mean(not sample.finished for sample in found),
        "by_style": styles,
        "by_operands": difficulty,
    }


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _accuracy(group: list[Sample]) -> float | None:
    return _mean(sample.right for sample in group)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, sample, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, default=policy_path())
    parser.add_argument("--problems", type=int, default=16, help="problems per number of operands")
    parser.add_argument("--samples", type=int, default=32, help="responses per problem")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=480)
    parser.add_argument("--seed", type=int, default=1_000_003)
    parser.add_argument("--show", type=int, default=0, help="print this many responses")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(argv)
    problems = []
    for operands in range(task.MIN_OPERANDS, task.MAX_OPERANDS + 1):
        problems += task.sample_problems(
            args.problems, seed=args.seed, operands=(operands, operands)
        )
    started = time.monotonic()
    found = sample_responses(
        args.policy,
        problems,
        samples=args.samples,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        seed=args.seed,
    )
    for sample in found[:: max(1, len(found) // args.show)] if args.show else ():
        print(f"{sample.problem.text} {sample.right} | {sample.text}", file=sys.stderr)
    figures = report(found)
    many = [
        problem
        for operands in range(task.MIN_OPERANDS, task.MAX_OPERANDS + 1)
        for problem in task.sample_problems(300, seed=args.seed, operands=(operands, operands))
    ]
    figures["bare_accuracy_by_operands"] = bare_accuracy(args.policy, many)
    figures["seconds"] = round(time.monotonic() - started, 1)
    figures["temperature"] = args.temperature
    if args.json:
        staged = args.json.with_name(args.json.name + ".tmp")
        staged.write_text(json.dumps(figures, indent=1) + "\n")
        os.replace(staged, args.json)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
