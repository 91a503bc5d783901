"""Measurement of the demo policy: what length buys.

    python -m recipes.demo_policy.evaluate_policy [--policy DIR] [--out DIR]

1. By style: every problem is answered greedily in every style. A style is forced by its first
   tokens (`<think>347 + 85 = ` is short, `<think>347 + 85: ` goes by columns); a second look by
   `; wait, ` after a finished first pass.
2. By temperature: plain samples, greedy, and the majority of 16, beside what min-p does.

For both problem families and the three levels of difficulty: accuracy with 95 % intervals
(bootstrap over problems), mean length in tokens (EOS included), and which style is the shortest
correct one.
Writes `accuracy.json` and `accuracy.png`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from lenvm_rl.demo import policy_path, task
from lenvm_rl.rollouts.atomic import replacing
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request

MAX_TOKENS = 560
MAJORITY = 16
WAYS = ("direct", "short", "columns", "short, checked", "columns, checked")
"""forced styles"""
TEMPERATURES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


@dataclass(frozen=True)
class Answer:
    """One response to one problem."""

    problem: task.Problem
    text: str
    length: int
    """tokens, EOS included"""
    finished: bool
    """whether it ended by EOS"""

    @property
    def correct(self) -> bool:
        """Whether the grader accepts it; a truncated response is wrong."""
        return self.finished and task.grade(self.text, self.problem.answer)


class Policy:
    """The demo policy with its tokenizer, answering problems from a given beginning."""

    def __init__(self, directory: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory)

    def answer(
        self,
        problems: Sequence[task.Problem],
        beginnings: Sequence[str] | None = None,
        *,
        seed: int = 0,
        **sampling: float,
    ) -> list[Answer]:
        """One response for each problem.

        Args:
            beginnings: text that each response begins with.
            seed: of the samples.
            **sampling: of each request; `temperature=0` is greedy.
        """
        sampler = ContinuousSampler(
            self.model, eos_token_ids=self.tokenizer.eos_token_id, seed=seed
        )
        starts = [self.tokenizer(text)["input_ids"] for text in beginnings or [""] * len(problems)]
        requests = []
        for problem, start in zip(problems, starts, strict=True):
            prompt = self.tokenizer.apply_chat_template(
                task.messages(problem), add_generation_prompt=True, return_dict=True
            )["input_ids"]
            requests.append(Request(prompt + start, max_tokens=MAX_TOKENS - len(start), **sampling))
        answers = []
        completions = sampler.generate(requests)
        for problem, start, completion in zip(problems, starts, completions, strict=True):
            ids, finished = start + list(completion.token_ids), completion.finish_reason == "stop"
            text = self.tokenizer.decode(ids[:-1] if finished else ids)
            answers.append(Answer(problem, text, len(ids), finished))
        return answers

    def by_style(self, problems: Sequence[task.Problem]) -> dict[str, list[Answer]]:
        """Greedy responses to every problem in each of `WAYS`."""
        found = {
            "direct": self.answer(problems, ["<think></think>"] * len(problems), temperature=0)
        }
        for name, mark in (("short", " = "), ("columns", ": ")):
            first = [f"<think>{_first_step(problem)}{mark}" for problem in problems]
            found[name] = self.answer(problems, first, temperature=0)
            found[f"{name}, checked"] = self._checked(found[name])
        return {way: found[way] for way in WAYS}

    def _checked(self, first: Sequence[Answer]) -> list[Answer]:
        """The same responses with a second look; one without an end stays as it is."""
        ended = [answer for answer in first if answer.finished]
        looks = [answer.text.split("</think>")[0] + "; wait, " for answer in ended]
        again = iter(self.answer([answer.problem for answer in ended], looks, temperature=0))
        return [next(again) if answer.finished else answer for answer in first]


def _first_step(problem: task.Problem) -> str:
    """`347 + 85`, the beginning of every pass."""
    question = problem.text.removesuffix(" = ?").split(" ")
    return " ".join(question[:3])


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """Accuracy with its 95 % interval over problems, and mean length in tokens."""
    correct: dict[task.Problem, list[bool]] = {}
    for answer in answers:
        correct.setdefault(answer.problem, []).append(answer.correct)
    shares = np.array([np.mean(group) for group in correct.values()])
    draws = np.random.default_rng(0).integers(len(shares), size=(1000, len(shares)))
    low, high = np.percentile(shares[draws].mean(1), (2.5, 97.5))
    return {
        "problems": len(shares),
        "accuracy": float(shares.mean()),
        "low": float(low),
        "high": float(high),
        "length": float(np.mean([answer.length for answer in answers])),
    }


def by_level(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """`summary` of all answers and of each level."""
    levels = {
        level: [answer for answer in answers if answer.problem.level == level]
        for level in task.LEVELS
    }
    return {"all": summary(answers)} | {
        level: summary(group) for level, group in levels.items() if group
    }


def majority(answers: Sequence[Answer], votes: int) -> float:
    """Share of problems whose most frequent final answer is correct.

    Args:
        answers: `votes` consecutive ones for each problem.
    """
    wins = []
    for start in range(0, len(answers), votes):
        group = answers[start : start + votes]
        wins.append(most_said([a.text for a in group]) == str(group[0].problem.answer))
    return float(np.mean(wins))


def most_said(texts: Sequence[str]) -> str:
    """The most frequent final answer, of equally frequent ones the first."""
    return Counter(text.rpartition("answer is ")[2] for text in texts).most_common(1)[0][0]


def shortest_correct(styles: dict[str, list[Answer]]) -> dict[str, float]:
    """Share of problems whose shortest correct response is in each style, or in `none`."""
    best = []
    for group in zip(*styles.values(), strict=True):
        right = [
            (answer.length, way)
            for way, answer in zip(styles, group, strict=True)
            if answer.correct
        ]
        best.append(min(right)[1] if right else "none")
    return {way: best.count(way) / len(best) for way in (*styles, "none")}


def measure_family(policy: Policy, family: str, *, problems: int, seed: int) -> dict:
    """All figures of one family; `problems` is the number for each style and temperature."""
    drawn = task.sample_problems(problems, seed=seed, family=family)
    styles = policy.by_style(drawn)
    few = drawn[: max(1, problems // 4)]
    repeated = [problem for problem in few for _ in range(MAJORITY)]
    figures: dict = {
        "by_style": {way: by_level(answers) for way, answers in styles.items()},
        "shortest_correct": shortest_correct(styles),
        "by_temperature": {},
    }
    for temperature in TEMPERATURES:
        several = repeated if temperature else drawn
        answers = policy.answer(several, seed=seed, temperature=temperature)
        row = by_level(answers)
        if temperature:
            row["all"]["majority"] = majority(answers, MAJORITY)
        if temperature == 1.0:
            figures["sampled"] = sampled_lengths(answers)
        figures["by_temperature"][f"{temperature:g}"] = row
    answers = policy.answer(repeated, seed=seed, temperature=1.0, min_p=0.1)
    figures["by_temperature"]["1, min-p .1"] = by_level(answers)
    return figures


def sampled_lengths(answers: Sequence[Answer]) -> dict:
    """Lengths and styles of plain samples, `MAJORITY` consecutive ones for each problem."""
    lengths = np.array([answer.length for answer in answers]).reshape(-1, MAJORITY)
    styles = Counter(task.style(answer.text) for answer in answers)
    return {
        "percentiles": dict(
            zip(
                ("min", "p50", "p90", "p99", "max"),
                np.percentile(lengths, (0, 50, 90, 99, 100)).tolist(),
                strict=True,
            )
        ),
        "std_over_mean_within_prompt": float(np.mean(lengths.std(1, ddof=1) / lengths.mean(1))),
        "share_truncated": float(np.mean([not answer.finished for answer in answers])),
        "styles": {style: styles[style] / len(answers) for style in task.STYLES},
    }


def table(family: str, figures: dict) -> Table:
    """One family's figures on half a screen."""
    shown = Table(
        title=f"{family}: accuracy in % (mean tokens); styles are greedy", title_justify="left"
    )
    for column in ("", "all", *task.LEVELS, f"{MAJORITY} vote"):
        shown.add_column(column, no_wrap=True)

    def line(name: str, row: dict[str, dict[str, float]]) -> None:
        cells = [
            f"{100 * row[level]['accuracy']:.1f} ({row[level]['length']:.0f})"
            if level in row
            else ""
            for level in ("all", *task.LEVELS)
        ]
        vote = row["all"].get("majority")
        shown.add_row(name, *cells, "" if vote is None else f"{100 * vote:.1f}")

    for way, row in figures["by_style"].items():
        line(way, row)
    shown.add_section()
    for temperature, row in figures["by_temperature"].items():
        line("greedy" if temperature == "0" else f"T {temperature}", row)
    return shown


def draw(figures: dict, file: Path) -> None:
    """Accuracy against mean length: a line of styles for each level, temperatures as crosses."""
    import matplotlib.pyplot as plt

    families = list(figures["families"])
    picture, axes = plt.subplots(1, len(families), figsize=(11, 4.4), sharey=True, squeeze=False)
    for axis, family in zip(axes[0], families, strict=True):
        found = figures["families"][family]
        for color, level in zip(("C2", "C1", "C3"), task.LEVELS, strict=True):
            rows = [row[level] for row in found["by_style"].values() if level in row]
            rows.sort(key=lambda row: row["length"])
            x = [row["length"] for row in rows]
            y = [100 * row["accuracy"] for row in rows]
            spans = [
                [100 * (row["accuracy"] - row["low"]) for row in rows],
                [100 * (row["high"] - row["accuracy"]) for row in rows],
            ]
            axis.errorbar(x, y, yerr=spans, fmt="o-", color=color, label=level, capsize=2)
        for name, row in found["by_temperature"].items():
            if name not in ("1", "0.6", "0"):
                continue
            point = row["all"]["length"], 100 * row["all"]["accuracy"]
            axis.plot(*point, "kx", label="all levels, as sampled" if name == "1" else None)
            label = "greedy" if name == "0" else f"T {name}"
            axis.annotate(
                label,
                point,
                xytext=(5, -11 if name == "1" else 5),
                textcoords="offset points",
                fontsize=8,
            )
        axis.set_xscale("log")
        axis.set_xlabel("mean length, tokens")
        axis.set_title(family)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy, %")
    axes[0][0].legend(title="greedy, one style a point", fontsize=8)
    picture.tight_layout()
    with replacing(file) as temporary:
        picture.savefig(temporary, dpi=120, format="png")
    plt.close(picture)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, default=policy_path())
    parser.add_argument("--out", type=Path, default=Path("runs/demo_policy"))
    parser.add_argument("--problems", type=int, default=400, help="problems of each family")
    parser.add_argument("--seed", type=int, default=1_000_003)
    args = parser.parse_args(argv)
    started, console, policy = time.monotonic(), Console(), Policy(args.policy)
    figures: dict = {"seed": args.seed, "problems": args.problems, "families": {}}
    for family in task.FAMILIES:
        found = measure_family(policy, family, problems=args.problems, seed=args.seed)
        figures["families"][family] = found
        console.print(table(family, found))
    figures["seconds"] = round(time.monotonic() - started, 1)
    args.out.mkdir(parents=True, exist_ok=True)
    with replacing(args.out / "accuracy.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
    draw(figures, args.out / "accuracy.png")
    console.print(f"{args.out / 'accuracy.json'}, accuracy.png  ({figures['seconds']:.0f} s)")


if __name__ == "__main__":
    main()
