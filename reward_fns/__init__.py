"""Reward functions: graders of answers, and the length rewards of the literature, by name.

Plain functions, one file each, without verl: token counts come from token ids (the reward manager
fills them in), formulas and sources stand in the docstrings. README.md has the table and says how
verl uses them.
"""

from __future__ import annotations

from reward_fns import kimi
from reward_fns.graders import GRADERS, get_grader
from reward_fns.l1_exact import l1_exact
from reward_fns.registry import BoundReward, LengthReward

# Strengths and the `bench` arguments suit the shipped policy: 73 tokens on average, at most 480,
# and about 40 where it does nothing superfluous.
LENGTH_REWARDS: dict[str, LengthReward] = {
    "l1_exact": LengthReward(
        kind="sample",
        fn=l1_exact,
        strength="alpha",
        strengths=(0.001, 0.003, 0.01),
        bench={"target": 40},
        columns=("target",),
    ),
    "kimi": LengthReward(
        kind="group", fn=kimi.group_rewards, strength="weight", strengths=(0.2, 0.5, 1.0)
    ),
}


def get_length_reward(name: str) -> LengthReward:
    """The registered length reward of that name.

    Raises:
        ValueError: no reward has that name.
    """
    if name not in LENGTH_REWARDS:
        known = ", ".join(sorted(LENGTH_REWARDS))
        raise ValueError(f"there is no length reward {name!r}: choose one of {known}")
    return LENGTH_REWARDS[name]


__all__ = [
    "GRADERS",
    "LENGTH_REWARDS",
    "BoundReward",
    "LengthReward",
    "get_grader",
    "get_length_reward",
]
