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
    leash,
    o1_pruner,
    shorter_better,
    truncation,
)
from reward_fns.graders import GRADERS, get_grader
from reward_fns.kinds import BoundReward, LengthReward

LENGTH_REWARDS: dict[str, LengthReward] = {
    "l1_exact": LengthReward("sample", l1_exact.l1_exact, columns=("target",)),
    "l1_max": LengthReward("sample", l1_max.l1_max, columns=("target",)),
    "kimi": LengthReward("group", kimi.group_rewards),
    "o1_pruner": LengthReward(
        "group", o1_pruner.group_rewards, columns=("reference_tokens", "reference_accuracy")
    ),
    "arora_zanette": LengthReward("group", arora_zanette.group_rewards),
    "dapo_overlong": LengthReward("sample", dapo_overlong.dapo_overlong),
    "truncation": LengthReward("sample", truncation.truncation),
    "laser": LengthReward("sample", laser.laser),
    "laser_d": LengthReward("stateful", laser.LaserD),
    "shorter_better": LengthReward("group", shorter_better.group_rewards),
    "alp": LengthReward("group", alp.group_rewards),
    "grpo_lead": LengthReward("group", grpo_lead.group_rewards),
    "hapo": LengthReward("stateful", hapo.Hapo),
    "a_dlp": LengthReward("stateful", a_dlp.ADlp),
    "leash": LengthReward("stateful", leash.Leash),
    "cosine": LengthReward("sample", cosine.cosine),
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
