"""How does verl call a length reward that looks at one response? One adapter for all of them.

verl calls `compute_score(data_source, solution_str, ground_truth, extra_info, **reward_kwargs)`.
The answer is graded by a named grader of this package; tokens come from
`extra_info['response_tokens']`, never from the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_fns.graders import get_grader, named_grader, true_answer
from reward_fns.inputs import clean_score, response_tokens


def verl_reward(
    reward: Callable[..., float], *, columns: Sequence[str] = ()
) -> Callable[..., dict[str, float]]:
    """verl's `compute_score` for a reward that looks at one response.

    Args:
        reward: `reward(correct, tokens, **params) -> float`.
        columns: arguments of `reward` read from `extra_info` where it has them.

    Returns:
        A function with verl's arguments; `grader` (a name in `reward_fns.graders.GRADERS`; else the
        data source tells) and the parameters of `reward` come from
        `reward.custom_reward_function.reward_kwargs`. It returns `score` (the reward), `acc` (the
        task score), `length_reward` (their difference) and `response_tokens`; it raises ValueError
        for a missing token count, an unknown grader, or none, and what `reward` refuses.
    """

    def compute_score(
        data_source: str,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        *,
        grader: str = "auto",
        **params: Any,
    ) -> dict[str, float]:
        tokens = response_tokens(extra_info)
        info = extra_info or {}
        given = {name: info[name] for name in columns if info.get(name) is not None}
        name = named_grader(grader, str(data_source))
        answer = true_answer(name, ground_truth, extra_info)
        correct = clean_score(get_grader(name)(solution_str, answer))
        score = reward(correct, tokens, **{**params, **given})
        return {
            "score": score,
            "acc": correct,
            "length_reward": score - correct,
            "response_tokens": float(tokens),
        }

    compute_score.__doc__ = f"verl's reward function of `{reward.__name__}`: see `verl_reward`."
    return compute_score
