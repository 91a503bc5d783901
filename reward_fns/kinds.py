"""The three kinds of length rewards, and one way to call them all.

By what the formula looks at:

    sample     @sample_reward  fn(correct, tokens, **params) -> float        one response
    group      @group_reward   fn(correct, tokens, **params) -> list[float]  a prompt's samples
    stateful   a subclass of `Stateful`                                      and earlier batches

`correct` is the task score in [0, 1], `tokens` the response's number of token ids, EOS included.
Rewards are whole (task and length together) unless a docstring says otherwise. Formulas see usable
samples alone: the decorators and `Stateful` clean what they are given (`inputs.py`).
`LengthReward.bind` hides the difference: one object, one prompt group at a time. `verl_reward`
makes verl's reward function of a sample reward.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reward_fns.graders import get_grader, named_grader, true_answer
from reward_fns.inputs import clean_count, clean_group, clean_score, response_tokens

Kind = Literal["sample", "group", "stateful"]


def sample_reward(fn: Callable[..., float]) -> Callable[..., float]:
    """Clean the first two arguments of `fn(correct, tokens, ...)`; 0 for an unusable count."""

    @functools.wraps(fn)
    def cleaned(correct: Any, tokens: Any, *args: Any, **params: Any) -> float:
        count = clean_count(tokens)
        reward = fn(clean_score(correct), 0.0 if count is None else count, *args, **params)
        return 0.0 if count is None else float(reward)

    return cleaned


def group_reward(fn: Callable[..., Sequence[float]]) -> Callable[..., list[float]]:
    """Clean the first two arguments of `fn(correct, tokens, ...)`, lists of one prompt's samples.

    `fn` sees only samples with a usable count; the others get 0.
    """

    @functools.wraps(fn)
    def cleaned(correct: Sequence[Any], tokens: Sequence[Any], **params: Any) -> list[float]:
        kept, scores, counts = clean_group(correct, tokens)
        return _scatter(fn(scores, counts, **params) if kept else [], kept, len(tokens))

    return cleaned


class Stateful(abc.ABC):
    """A length reward that learns from every batch; `rewards` and `learn` see usable samples."""

    def group_rewards(
        self, correct: Sequence[Any], tokens: Sequence[Any], *, prompt_id: str | None = None
    ) -> list[float]:
        """Whole rewards of one prompt's samples, by what was learned from the batches before."""
        kept, scores, counts = clean_group(correct, tokens)
        return _scatter(self.rewards(scores, counts, prompt_id), kept, len(tokens))

    def update(
        self, correct: Sequence[Any], tokens: Sequence[Any], prompt_ids: Sequence[str]
    ) -> dict[str, float]:
        """Learn from a whole batch, once and after its rewards; returns what is to be logged."""
        kept, scores, counts = clean_group(correct, tokens, prompt_ids)
        return self.learn(scores, counts, [str(prompt_ids[position]) for position in kept])

    @abc.abstractmethod
    def rewards(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_id: str | None
    ) -> list[float]:
        """The formula, for the usable samples of one prompt (perhaps none)."""

    @abc.abstractmethod
    def learn(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_ids: Sequence[str]
    ) -> dict[str, float]:
        """The rule of the state, for the usable samples of one batch (perhaps none)."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state as plain numbers, for JSON."""

    @abc.abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""


def _scatter(rewards: Sequence[float], kept: Sequence[int], size: int) -> list[float]:
    """Rewards of the kept positions in a list of `size`, 0 elsewhere."""
    spread = [0.0] * size
    for position, reward in zip(kept, rewards, strict=True):
        spread[position] = float(reward)
    return spread


@dataclass(frozen=True)
class LengthReward:
    """A published length reward, as a trainer needs to know it."""

    kind: Kind  # what the formula looks at, see the module
    fn: Callable[..., Any]  # a function, or the class of a stateful reward
    columns: tuple[str, ...] = ()  # arguments of fn that differ by prompt: columns of the data

    def bind(self, **params: Any) -> BoundReward:
        """Fix the parameters; what is left to give per prompt group is counts and columns."""
        return BoundReward(self, params)


class BoundReward:
    """A length reward with its parameters fixed, the same to call for all kinds."""

    def __init__(self, reward: LengthReward, params: Mapping[str, Any]) -> None:
        self._reward = reward
        self._params = dict(params)
        self._state = reward.fn(**params) if reward.kind == "stateful" else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Data columns that `group_rewards` can be given; those fixed by `bind` left out."""
        return tuple(name for name in self._reward.columns if name not in self._params)

    def group_rewards(
        self,
        correct: Sequence[float],
        tokens: Sequence[float],
        *,
        prompt_id: str | None = None,
        columns: Mapping[str, Any] | None = None,
    ) -> list[float]:
        """Rewards of one prompt's samples.

        Args:
            correct: task scores in [0, 1], one per sample.
            tokens: response tokens, EOS included, one per sample.
            prompt_id: names the prompt across epochs; only stateful rewards with a history use it.
            columns: the prompt's values of `self.columns`, as far as the data has them.

        Raises:
            ValueError: a count or a column that the formula needs is missing.
        """
        if self._state is not None:
            return self._state.group_rewards(correct, tokens, prompt_id=prompt_id)
        arguments = {**self._params, **_present(columns, self.columns)}
        if self._reward.kind == "group":
            return self._reward.fn(correct, tokens, **arguments)
        return [
            self._reward.fn(score, count, **arguments)
            for score, count in zip(correct, tokens, strict=True)
        ]

    def update(
        self, correct: Sequence[float], tokens: Sequence[float], prompt_ids: Sequence[str]
    ) -> dict[str, float]:
        """Let a stateful reward learn from a whole batch; returns what it wants logged."""
        return {} if self._state is None else self._state.update(correct, tokens, prompt_ids)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep, as plain numbers; empty for rewards without state."""
        return {} if self._state is None else self._state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        if self._state is not None:
            self._state.load_state_dict(state)


def verl_reward(
    reward: Callable[..., float], *, columns: Sequence[str] = ()
) -> Callable[..., dict[str, float]]:
    """verl's `compute_score` for a reward that looks at one response.

    verl calls it with `(data_source, solution_str, ground_truth, extra_info, **reward_kwargs)`. The
    answer is graded by a named grader of this package; tokens come from
    `extra_info['response_tokens']`, never from the text.

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
        name = named_grader(grader, str(data_source))
        answer = true_answer(name, ground_truth, extra_info)
        correct = clean_score(get_grader(name)(solution_str, answer))
        score = reward(correct, tokens, **{**params, **_present(extra_info, columns)})
        return {
            "score": score,
            "acc": correct,
            "length_reward": score - correct,
            "response_tokens": float(tokens),
        }

    compute_score.__doc__ = f"verl's reward function of `{reward.__name__}`: see `verl_reward`."
    return compute_score


def _present(given: Mapping[str, Any] | None, columns: Sequence[str]) -> dict[str, Any]:
    """The columns that a prompt has a value for."""
    return {name: given[name] for name in columns if given and given.get(name) is not None}
