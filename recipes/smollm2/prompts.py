"""Prompts that the policy is sampled on: which sets, how many of each, which are held out.

Six sets of five kinds. Held-out prompts are balanced over the kinds (the two sets of programs are
one), training prompts are as many as give about a million response tokens. Both lists are mixed, so
that what a stopped run has written is balanced too.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.sets.load import load_named_set, parse_set_name


@dataclass(frozen=True)
class Share:
    """Prompts taken of a set."""

    name: str
    """SET or SET/SPLIT."""
    train: int
    heldout: int


SHARES = (
    Share("gsm8k/train", 200, 21),
    Share("ifeval", 200, 21),
    Share("mt_bench", 59, 21),
    Share("tinystories", 200, 21),
    Share("humaneval", 80, 10),
    Share("mbpp", 120, 11),
)


def mixed_prompts(
    places: Mapping[str, str], *, seed: int, shares: Sequence[Share] = SHARES
) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts, each in mixed order.

    Args:
        places: set -> folder, file or hub name, where it is not the set's own place on the hub.
    Raises:
        ValueError: a place for no set of `shares`, a set that cannot be read or has too few.
    """
    known = {share.name.split("/")[0] for share in shares}
    if strangers := set(places) - known:
        raise ValueError(
            f"no prompts of {', '.join(sorted(strangers))} are taken: give places of "
            f"{', '.join(sorted(known))}."
        )
    train: list[Prompt] = []
    heldout: list[Prompt] = []
    for share in shares:
        prompts = _drawn(share, places.get(share.name.split("/")[0]), seed)
        heldout += prompts[: share.heldout]
        train += prompts[share.heldout :]
    for side in (train, heldout):
        random.Random(seed).shuffle(side)
    return train, heldout


def _drawn(share: Share, place: str | None, seed: int) -> list[Prompt]:
    wanted = share.train + share.heldout
    name = parse_set_name(f"{share.name}@{place}" if place else share.name)
    assert name is not None, share.name
    prompts = load_named_set(name, seed=seed, limit=wanted)
    if len(prompts) < wanted:
        raise ValueError(
            f"{share.name} at {place or name.chosen.hub} has {len(prompts)} distinct prompts, "
            f"{wanted} are needed: name the whole set."
        )
    return prompts
