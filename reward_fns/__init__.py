"""Reward functions: graders of answers, and the length rewards of the literature, by name.

Plain functions, one file each, without verl: token counts come from token ids (the reward manager
fills them in), formulas and sources stand in the docstrings. README.md has the table and says how
verl uses them.
"""

from __future__ import annotations

from reward_fns import (
    a_dlp,
    alp,
    arora_zanette,
    cosine,
    dapo_overlong,
    grpo_lead,
    hapo,
    kimi,
    l1_exact,
    l1_max,
    laser,
    laser_d,
    leash,
    o1_pruner,
    shorter_better,
    truncation,
)
from reward_fns.graders import GRADERS, get_grader
from reward_fns.registry import BoundReward, LengthReward

# Strengths run from weak to strong. They and the `bench` arguments suit the shipped policy: 73
# tokens on average, at most 480, about 40 in its terse style; 71 % right.
LENGTH_REWARDS: dict[str, LengthReward] = {
    "l1_exact": LengthReward(
        kind="sample",
        fn=l1_exact.l1_exact,
        strength="alpha",
        strengths=(0.001, 0.003, 0.01),
        bench={"target": 40},
        columns=("target",),
    ),
    "l1_max": LengthReward(
        kind="sample",
        fn=l1_max.l1_max,
        strength="alpha",
        strengths=(0.001, 0.003, 0.01),
        bench={"target": 40},
        columns=("target",),
    ),
    "kimi": LengthReward(
        kind="group", fn=kimi.group_rewards, strength="weight", strengths=(0.2, 0.5, 1.0)
    ),
    "o1_pruner": LengthReward(
        kind="group",
        fn=o1_pruner.group_rewards,
        strength="alpha",  # weighs the answer, so less of it presses harder
        strengths=(10.0, 5.0, 2.0),
        columns=("reference_tokens", "reference_accuracy"),
    ),
    "arora_zanette": LengthReward(
        kind="group", fn=arora_zanette.group_rewards, strength="alpha", strengths=(0.1, 0.2, 0.4)
    ),
    "dapo_overlong": LengthReward(
        kind="sample",
        fn=dapo_overlong.dapo_overlong,
        strength="max_tokens",
        strengths=(192.0, 96.0, 64.0),
        bench={"buffer": 32.0},
    ),
    "truncation": LengthReward(
        kind="sample", fn=truncation.truncation, strength="limit", strengths=(128.0, 64.0, 40.0)
    ),
    "laser": LengthReward(
        kind="sample", fn=laser.laser, strength="target_tokens", strengths=(128.0, 64.0, 40.0)
    ),
    "laser_d": LengthReward(
        kind="stateful",
        fn=laser_d.LaserD,
        strength="bonus",
        strengths=(0.25, 0.5, 1.0),
        bench={"shortest": 8.0, "longest": 480.0, "step": 8.0, "every": 5},
    ),
    "shorter_better": LengthReward(
        kind="group",
        fn=shorter_better.group_rewards,
        strength="beta",
        strengths=(0.002, 0.006, 0.02),
    ),
    "alp": LengthReward(
        kind="group", fn=alp.group_rewards, strength="beta", strengths=(0.0005, 0.002, 0.006)
    ),
    "grpo_lead": LengthReward(
        kind="group", fn=grpo_lead.group_rewards, strength="alpha", strengths=(0.05, 0.2, 0.5)
    ),
    "hapo": LengthReward(
        kind="stateful", fn=hapo.Hapo, strength="weight", strengths=(0.25, 0.5, 1.0)
    ),
    "a_dlp": LengthReward(
        kind="stateful", fn=a_dlp.ADlp, strength="reference", strengths=(0.75, 0.7, 0.62)
    ),
    "leash": LengthReward(
        kind="stateful", fn=leash.Leash, strength="target_tokens", strengths=(56.0, 40.0, 28.0)
    ),
    "cosine": LengthReward(
        kind="sample", fn=cosine.cosine, strength="max_tokens", strengths=(480.0, 160.0, 80.0)
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
