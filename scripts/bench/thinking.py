"""Budgets for the thinking alone: a wall, a ramp before the wall, and guidance by a LenVM.

    python -m scripts.bench thinking --out runs/thinking --json thinking.json

The demo policy on held-out problems that it is asked to think about. Every problem has a budget of
its own: a share of the mean thinking of its unguided samples, tags included.

    wall    the closing tag is forced when the budget is used up, as vLLM's thinking_token_budget
    ramp    before the wall, over the last 30 %, the tag's logit rises towards the largest one less
            .25, by a sigmoid in what is used of that part (as vllm-project/vllm#45727 proposes)
    at_most, equal   guidance of the thinking (`lenvm_segment=thinking`) by a LenVM that counts it,
            trained here on the thinking of other problems' rollouts

The answer is the policy's own in all of them. A budget that shortens thinking less than another is
no better for it: `lead` compares accuracies at equal tokens, where the wall's accuracy is read off
between its own budgets. An answer is broken if it states no number, or never ends.

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenvm_rl.core import gamma_for_length
from lenvm_rl.core.intervals import interval, resampled_means
from lenvm_rl.demo import policy_path, task
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.guidance import GuidanceSettings, Guide
from lenvm_rl.guidance.heads.q_head import make_scorer
from lenvm_rl.model import LengthValueModel, load_tokenizer, save_checkpoint
from lenvm_rl.model.training import Recipe, train
from lenvm_rl.rollouts import RolloutReader, ThinkTags, keep_segment
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.sampling.transformers.decode_batch import Running
from lenvm_rl.sampling.transformers.engine import GuidanceHook, sample_to_file
from lenvm_rl.sampling.transformers.sampler import Completion, ContinuousSampler, Request
from scripts.bench import harness

WALLS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0, 1.5)
"""Shares at which the wall is measured, to read its accuracy between."""
MAX_TOKENS = 600
_STATED = re.compile(r"\banswer is -?\d+")


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """How much of everything."""

    out: Path = Path("runs/thinking")
    """Directory of the LenVM and of what was measured; a second run goes on."""
    train_prompts: int = 600
    """Problems that the LenVM learns from, 8 samples each."""
    epochs: float = 4.0
    """Passes over their thinking."""
    problems: int = 160
    """Held-out problems."""
    samples: int = 4
    """Samples of each, in every arm; twice as many unguided ones set the budgets."""
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Budgets, as shares of a problem's mean thinking."""
    seed: int = 0
    """Of problems, training and samples."""


class Wall:
    """A logits hook that closes the thinking at its budget, after a ramp if asked for.

    Args:
        budgets: tokens of each request's thinking.
        tags: of one token each.
        ramp: share of the budget, before its end, over which the tag's logit rises; 0: none.
    """

    reads_hidden = False

    def __init__(self, budgets: Sequence[int], tags: ThinkTags, *, ramp: float = 0.0):
        self.budgets, self.ramp = budgets, ramp
        self.open, self.tag = tags.start[0], tags.end[0]

    def apply(self, logits: Tensor, running: Sequence[Running], hidden: Tensor | None) -> None:
        """Force or nudge the closing tag."""
        for row, one in zip(logits, running, strict=True):
            if self.tag in one.output or one.output[:1] != [self.open]:
                continue
            left = self.budgets[one.request_id] - len(one.output)
            if left <= 0:
                row[torch.arange(len(row)) != self.tag] = -torch.inf
            elif left < (zone := self.ramp * self.budgets[one.request_id]):
                rise = torch.sigmoid(torch.tensor(12.0 * (1 - left / zone) - 6.0))
                end = row[self.tag].clone()
                row[self.tag] = torch.maximum(end, end + rise * (row.max() - 0.25 - end))

    def close(self, request_id: Any) -> None:
        """Nothing is kept."""


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Accuracy, broken answers and tokens of every arm."""
    policy = policy_path()
    tokenizer = load_tokenizer(policy)
    tags = ThinkTags.of("<think>", "</think>", tokenizer)
    lenvm = _lenvm(options, policy, tokenizer, tags)
    problems = [
        prompt
        for prompt in demo_prompts(2 * options.problems, seed=options.seed + 9_000)
        if task.NO_THINKING not in prompt.messages[-1]["content"]
    ][: options.problems]
    sampler = ContinuousSampler.from_pretrained(str(policy), max_batch=64, seed=options.seed)
    arms = _Arms(options, sampler, tokenizer, tags, problems)
    natural = arms.measure("unguided", 2 * options.samples, None)
    thinking = np.array(natural["thinking"]).mean(1)
    result = {"unguided": arms.figures(natural)}
    guide = Guide(
        make_scorer(lenvm, slots=64, max_length=sampler.context_length, max_candidates=20),
        eos_token_ids=sampler.eos_token_ids,
        max_candidates=20,
    )

    def budgets(share: float) -> list[int]:
        each = np.maximum(np.rint(share * thinking), 1).astype(int)
        return [int(n) for n in each for _ in range(options.samples)]

    def hooks(name: str, n: list[int]) -> Any:
        if name in ("wall", "ramp"):
            return Wall(n, tags, ramp=0.3 if name == "ramp" else 0.0)
        asked = {"mode": name, "segment": "thinking"}
        return GuidanceHook(
            guide, {i: GuidanceSettings(target=t, **asked) for i, t in enumerate(n)}
        )

    measured: dict[tuple[str, float], dict] = {}
    for name in ("wall", "ramp", "at_most", "equal"):
        for share in WALLS if name == "wall" else options.shares:
            n = budgets(share)
            rows = arms.measure(
                f"{name}-{share:g}", options.samples, lambda n=n, k=name: hooks(k, n)
            )
            measured[name, share] = rows
            result[f"{name}-{share:g}"] = arms.figures(rows)
            yield result
    result["lead"] = {
        f"{name}-{share:g}": _lead(rows, [measured["wall", wall] for wall in WALLS])
        for (name, share), rows in measured.items()
        if name != "wall"
    }
    yield result


def _lenvm(options: Options, policy: Path, tokenizer: Any, tags: ThinkTags) -> LengthValueModel:
    """A LenVM of the thinking: the one that is there, or a new one."""
    place, rollouts = options.out / "lenvm", options.out / "rollouts"
    if place.exists():
        return LengthValueModel.from_pretrained(place).eval()
    prompts = demo_prompts(options.train_prompts, seed=options.seed)
    sample_to_file(policy, prompts, rollouts, n=8, max_tokens=MAX_TOKENS)
    if not (thinking := options.out / "thinking").exists():
        keep_segment(rollouts, thinking, segment="thinking", tags=tags)
    p99 = float(np.percentile(RolloutReader(thinking).lengths(), 99))
    torch.manual_seed(options.seed)
    model = LengthValueModel.from_policy(policy, gamma=gamma_for_length(p99))
    recipe = Recipe(learning_rate=1e-3, epochs=options.epochs, seed=options.seed)
    train(model, thinking, recipe, label="thinking")
    save_checkpoint(model, tokenizer, place)
    return model.eval()


class _Arms:
    """The same problems under different budgets."""

    def __init__(self, options: Options, sampler, tokenizer, tags: ThinkTags, problems: Sequence):
        self.options, self.sampler, self.tokenizer, self.tags = options, sampler, tokenizer, tags
        self.problems = problems

    def measure(self, name: str, n: int, hook: Callable[[], Any] | None) -> dict[str, Any]:
        """Per problem and sample: correct, broken, response tokens, thinking tokens."""
        place = self.options.out / "arms" / f"{name}.json"
        if place.exists():
            return json.loads(place.read_text())
        requests = [
            Request(encode_prompt(self.tokenizer, prompt), MAX_TOKENS, seed=sample * 10_007 + i)
            for i, prompt in enumerate(self.problems)
            for sample in range(n)
        ]
        self.sampler.hook = hook() if hook is not None else None
        try:
            completions = self.sampler.generate(requests)
        finally:
            self.sampler.hook = None
        rows = [
            self._row(completion, self.problems[i // n].ground_truth)
            for i, completion in enumerate(completions)
        ]
        found = {
            key: [[row[key] for row in rows[i : i + n]] for i in range(0, len(rows), n)]
            for key in rows[0]
        }
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found))
        return found

    def _row(self, completion: Completion, truth: str) -> dict[str, float]:
        ids = completion.token_ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        close = self.tags.close(ids)
        stated = close is not None and _STATED.search(text) is not None
        return {
            "correct": float(task.grade(text, truth)),
            "broken": float(completion.finish_reason != "stop" or not stated),
            "tokens": len(ids),
            "thinking": len(ids) if close is None else close,
        }

    def figures(self, rows: dict[str, list]) -> dict[str, Any]:
        """Means, and the interval of the accuracy over problems."""
        x = {key: np.array(value, dtype=float) for key, value in rows.items()}
        sums = torch.tensor(x["correct"].sum(1))
        counts = torch.full_like(sums, x["correct"].shape[1])
        return {
            "accuracy": x["correct"].mean(),
            "interval": interval(resampled_means(sums, counts)),
            "broken": x["broken"].mean(),
            "tokens": x["tokens"].mean(),
            "thinking": x["thinking"].mean(),
        }


def _lead(rows: dict, walls: Sequence[dict]) -> dict[str, Any]:
    """Accuracy above the wall's at equal mean tokens, and its interval over problems."""

    def means(x: dict, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tuple(np.array(x[key])[drawn].mean((-2, -1)) for key in ("tokens", "correct"))

    def lead(drawn: np.ndarray) -> float:
        at, accuracy = means(rows, drawn)
        points = sorted(means(wall, drawn) for wall in walls)
        return float(accuracy - np.interp(at, *zip(*points, strict=True)))

    count = len(rows["tokens"])
    rng = np.random.default_rng(0)
    drawn = [lead(rng.integers(count, size=count)) for _ in range(1000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"points": 100 * lead(np.arange(count)), "interval": [100 * low, 100 * high]}
