"""LASER and LASER-D: a bonus for correct answers within a target length.

    r = c + bonus * 1[n <= L]         correct answers
    r = wrong                         wrong answers

c task score, n response tokens, L target length in tokens: one for all prompts (LASER), or one per
difficulty that follows the policy (LASER-D):

    d     easy, medium or hard: share of correct answers in the group >= 2/3, >= 1/3, less
    L(d)  smallest target of the grid with  floor(coverage(L, d) * k(d)) >= 1

coverage(L, d) share of the monitored responses of difficulty d with at most L tokens; k(d) right
answers that a group of K samples of that difficulty has at least: floor(2K/3), floor(K/3) and 1,
but never 0. So a target is never so short that no correct answer of a group is expected within it.

Source: Liu et al., "Learn to Reason Efficiently with Adaptive Length-based Reward Shaping", arXiv
2505.15612; official code hkust-nlp/Laser, `verl/utils/reward_score/length_penalty.py` (type
"reward"), with bonus 0.5, wrong -0.5 and L = 4,096 as in `laser-1.5b-l4096.sh` (2,048 and 8,192
in its siblings). LASER-D: also `count_length_distribution.py`, K = 8, grid 4,096 to 16,384 in steps
of 1,024 (`laser-d-1.5b-l4096.sh`). There a monitoring set of 500 samples is generated anew every 20
steps; here whatever `update` is given is monitored, by default the training batches since the last
change of targets, so it costs nothing. The code puts a share of exactly 1/3 or 2/3 into the lower
class while monitoring and into the higher one while rewarding; here it is the higher one in both.
LASER-DE needs the tokens themselves (it exempts wrong answers without repetition) and is not part
of this file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from reward_fns.inputs import check_finite, check_positive, is_correct, mean
from reward_fns.kinds import Stateful, sample_reward, verl_reward

DIFFICULTIES = ("easy", "medium", "hard")


@sample_reward
def laser(
    correct: float,
    tokens: float,
    *,
    target_tokens: float = 4_096,
    bonus: float = 0.5,
    wrong: float = -0.5,
) -> float:
    """`correct + bonus * (tokens <= target_tokens)` if right, else `wrong`.

    Args:
        correct: task score in [0, 1].
        tokens: response tokens, EOS included.
        target_tokens: longest response that earns the bonus.
        bonus: added to correct answers within the target.
        wrong: reward of a wrong answer of any length.

    Raises:
        ValueError: target_tokens is not positive, bonus or wrong is not finite.
    """
    check_positive(target_tokens=target_tokens)
    check_finite(bonus=bonus, wrong=wrong)
    if not is_correct(correct):
        return wrong
    return correct + (bonus if tokens <= target_tokens else 0.0)


compute_score = verl_reward(laser)


def difficulty(pass_rate: float) -> str:
    """`easy` from 2/3 of correct answers on, `medium` from 1/3 on, else `hard`."""
    if pass_rate >= 2 / 3:
        return "easy"
    return "medium" if pass_rate >= 1 / 3 else "hard"


class LaserD(Stateful):
    """Stateful reward; `targets` holds the current L(d) in tokens.

    Args:
        bonus: added to correct answers within their target.
        wrong: reward of a wrong answer.
        shortest: smallest target of the grid, tokens.
        longest: largest target, and every L(d) until the first change.
        step: distance of neighbouring targets, tokens.
        samples: responses per prompt, K.
        every: batches between changes of the targets.

    Raises:
        ValueError: a length, `samples` or `every` is not positive, bonus or wrong is not finite,
            or shortest is above longest.
    """

    def __init__(
        self,
        *,
        bonus: float = 0.5,
        wrong: float = -0.5,
        shortest: float = 4_096,
        longest: float = 16_384,
        step: float = 1_024,
        samples: int = 8,
        every: int = 20,
    ) -> None:
        check_finite(bonus=bonus, wrong=wrong)
        check_positive(shortest=shortest, longest=longest, step=step, samples=samples, every=every)
        if shortest > longest:
            raise ValueError(
                f"shortest is {shortest} tokens, longest {longest}: set shortest <= longest"
            )
        self._bonus, self._wrong, self._every = bonus, wrong, every
        size = int((longest - shortest) // step) + 1
        self._grid = [shortest + step * number for number in range(size)]
        self._longest = longest
        self._least_correct = {
            "easy": max(2 * samples // 3, 1),
            "medium": max(samples // 3, 1),
            "hard": 1,
        }
        self.targets = dict.fromkeys(DIFFICULTIES, float(longest))
        self._monitored: dict[str, list[float]] = {name: [] for name in DIFFICULTIES}
        self._batches = 0

    def rewards(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_id: str | None
    ) -> list[float]:
        """LASER's rewards with the target of the group's own difficulty."""
        if not correct:
            return []
        setting = {"bonus": self._bonus, "wrong": self._wrong}
        target = self.targets[difficulty(_pass_rate(correct))]
        return [
            laser(score, count, target_tokens=target, **setting)
            for score, count in zip(correct, tokens, strict=True)
        ]

    def learn(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_ids: Sequence[str]
    ) -> dict[str, float]:
        """Monitor a batch of whole groups; every `every` batches choose new targets.

        Returns:
            `target_easy`, `target_medium` and `target_hard`, in tokens.
        """
        groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for score, count, name in zip(correct, tokens, prompt_ids, strict=True):
            groups[name].append((score, count))
        for group in groups.values():
            level = difficulty(_pass_rate([score for score, _ in group]))
            self._monitored[level].extend(count for _, count in group)
        self._batches += 1
        if self._batches % self._every == 0:
            self.targets = {level: self._choose(level) for level in DIFFICULTIES}
            self._monitored = {level: [] for level in DIFFICULTIES}
        return {f"target_{level}": self.targets[level] for level in DIFFICULTIES}

    def state_dict(self) -> dict[str, Any]:
        """Targets, and what was monitored since they were chosen."""
        return {
            "targets": dict(self.targets),
            "monitored": {level: list(counts) for level, counts in self._monitored.items()},
            "batches": self._batches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.targets = {level: float(state["targets"][level]) for level in DIFFICULTIES}
        self._monitored = {level: list(state["monitored"][level]) for level in DIFFICULTIES}
        self._batches = int(state["batches"])

    def _choose(self, level: str) -> float:
        """Smallest target that leaves a correct answer in reach; the longest where none does."""
        counts = self._monitored[level]
        for target in self._grid:
            covered = sum(count <= target for count in counts)
            # in whole numbers: floor(covered / len(counts) * k) >= 1
            if counts and covered * self._least_correct[level] >= len(counts):
                return float(target)
        return float(self._longest)


def _pass_rate(scores: Sequence[float]) -> float:
    return mean([1.0 if is_correct(score) else 0.0 for score in scores])
