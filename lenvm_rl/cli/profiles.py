"""Length profiles of prompts, for `lenvm predict --profile`: of graded rollouts, or predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.profile import predicted_profile, sampled_profiles


def profiles_of_predictions(
    rows: Iterable[dict[str, Any]], *, floor: float
) -> Iterator[dict[str, Any]]:
    """Profiles of `predict_prompts`' rows; one that has an `error` stays as it is.

    Raises:
        ValueError: rows of a LenVM that predicts one number a prompt.
    """
    for row in rows:
        if "error" in row:
            yield row
        elif "p90" not in row:
            raise ValueError(
                "a profile needs quantiles, and this LenVM predicts one number a prompt: give a "
                "LenVM of the target distribution, or graded --rollouts in place of --prompts."
            )
        else:
            yield predicted_profile(row, floor=floor)


def profiles_of_rollouts(
    rows: Iterable[Rollout],
    decode: Callable[[Sequence[int]], str],
    grader: str,
    *,
    floor: float,
) -> Iterator[dict[str, Any]]:
    """Profiles of completions, judged by the reward that they have, else by the grader.

    Args:
        rows: completions.
        decode: response token ids to text.
        grader: name of a grader, or `auto`: that of each row's data source.
        floor: of the band, in [0, 1].
    Raises:
        ValueError: a row with neither reward nor ground truth; and what the grader raises.
    """
    from lenvm_rl.cli.graders import row_judge

    judge = row_judge(grader)

    def judged() -> Iterator[tuple[Rollout, bool]]:
        for row in rows:
            if row.reward is not None:
                yield row, row.reward > 0.5
            elif row.ground_truth is not None:
                yield row, judge(row.data_source, decode(row.response_ids), row.ground_truth)
            else:
                raise ValueError(
                    f"prompt {row.prompt_id!r}, sample {row.sample_id}: neither a reward nor a "
                    "ground truth to grade it by. Sample prompts with a ground_truth, or profile "
                    "--prompts by prediction."
                )

    return sampled_profiles(judged(), floor=floor)
