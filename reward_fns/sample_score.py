"""How does verl call a length reward that looks at one response? One adapter for all of them.

verl calls `compute_score(data_source, solution_str, ground_truth, extra_info, **reward_kwargs)`.
The answer is graded by a named grader of this package; tokens come from
`extra_info['response_tokens']`, never from the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_fns.graders import get_grader
from reward_fns.inputs import clean_score, response_tokens


def score_sample(
    reward: Callable[..., float],
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None,
    grader: str,
    columns: Sequence[str] = (),
    params: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Grade a response, then reward its score and length.

    Args:
        reward: `reward(correct, tokens, **params) -> float`.
        grader: name in `reward_fns.graders.GRADERS`.
        columns: arguments of `reward` read from `extra_info` where it has them.
        params: further arguments of `reward`, verl's `reward_kwargs`.

    Returns:
        `score` (the reward), `acc` (the task score), `length_reward` (their difference) and
        `response_tokens`. GDPO takes `acc` and `length_reward` as separate objectives.

    Raises:
        ValueError: no token count, an unknown grader, or a parameter that `reward` refuses.
    """
    tokens = response_tokens(extra_info)
    info = extra_info or {}
    given = {name: info[name] for name in columns if info.get(name) is not None}
    grade = get_grader(grader)
    correct = clean_score(grade(solution_str, ground_truth))
    score = reward(correct, tokens, **{**dict(params or {}), **given})
    return {
        "score": score,
        "acc": correct,
        "length_reward": score - correct,
        "response_tokens": float(tokens),
    }
