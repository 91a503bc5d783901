"""What is known of each prompt's lengths, in the shape that length rewards read.

NeMo-RL's length penalties for NeMo-Gym (`nemo_rl/utils/length_penalty.py`) look for these fields in
the rows of their data set:

    profile_band               {"total": {"a", "b", "f"}}: a right answer's reward is multiplied by
                               1 up to a tokens, by f from b tokens on, linearly between
    profiled_rewards, profiled_output_lengths
                               of each sampled completion: a penalty beyond mean + n std of the
                               right ones

A profile has them beside the numbers they come from. Here a and b are the median and the .9
quantile of the right answers' lengths: half of them lose nothing. A prompt without a right answer
says nothing of how short one may be and gets no band. Lengths are tokens, EOS included; a truncated
completion counts with what was seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lenvm_rl.rollouts.record import Rollout

FLOOR = 0.5
"""What is left of the reward from b tokens on."""


def band(a: float, b: float, floor: float = FLOOR) -> dict[str, dict[str, float]]:
    """`profile_band` of all tokens; b is at least a token above a, as its readers ask."""
    if not 0 <= floor <= 1:
        raise ValueError(f"the floor of a band must be in [0, 1], got {floor}: it scales a reward.")
    return {"total": {"a": float(a), "b": float(max(b, a + 1)), "f": float(floor)}}


def sampled_profiles(
    rows: Iterable[tuple[Rollout, bool]], *, floor: float = FLOOR
) -> Iterator[dict[str, Any]]:
    """A profile per prompt, in the order of their first completion.

    Args:
        rows: completions and whether they are right; a few numbers of each are kept.
        floor: of the band, in [0, 1].
    """
    prompts: dict[str, tuple[str, list[tuple[int, bool, bool]]]] = {}
    for row, right in rows:
        found = prompts.setdefault(row.prompt_id, (row.data_source, []))[1]
        found.append((row.length, right, row.truncated))
    for name, (source, found) in prompts.items():
        lengths, right, truncated = (np.array(x) for x in zip(*found, strict=True))
        profile: dict[str, Any] = {
            "prompt_id": name,
            "data_source": source,
            "samples": len(found),
            "correct": int(right.sum()),
            "truncated": int(truncated.sum()),
            "shortest_correct": None,
        }
        if right.any():
            p50, p90 = np.quantile(lengths[right], (0.5, 0.9)).tolist()
            profile |= {"shortest_correct": int(lengths[right].min()), "p50": p50, "p90": p90}
            profile["profile_band"] = band(p50, p90, floor)
        profile["profiled_rewards"] = right.astype(float).tolist()
        profile["profiled_output_lengths"] = lengths.tolist()
        yield profile


def predicted_profile(row: Mapping[str, Any], *, floor: float = FLOOR) -> dict[str, Any]:
    """A profile of a prediction at the prompt: its quantiles, of all answers, right or wrong.

    Args:
        row: prompt_id, mean, p50, p90 (tokens) and what else is known.
        floor: of the band, in [0, 1].
    """
    kept = {key: row[key] for key in ("prompt_id", "mean", "p50", "p90")}
    return {**kept, "samples": 0, "profile_band": band(row["p50"], row["p90"], floor)}
