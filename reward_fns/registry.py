"""What does a trainer need to know of a length reward to use it by name?

Three kinds, by what the formula looks at:

    sample     fn(correct, tokens, **params) -> float             one response
    group      fn(correct, tokens, **params) -> list[float]       all samples of one prompt
    stateful   fn(**params) -> object with
                   group_rewards(correct, tokens, *, prompt_id) -> list[float]
                   update(correct, tokens, prompt_ids) -> dict    once per batch, after its rewards
                   state_dict() -> dict, load_state_dict(dict)    plain numbers, for JSON

`correct` is the task score in [0, 1], `tokens` the response's number of token ids, EOS included.
Rewards are whole (task and length together) unless a docstring says otherwise.
`LengthReward.bind` hides the difference: one object, one prompt group at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["sample", "group", "stateful"]


@dataclass(frozen=True, kw_only=True)
class LengthReward:
    """A published length reward: its function and how the benchmark sets it."""

    kind: Kind  # what the formula looks at, see the module
    fn: Callable[..., Any]  # a function, or the class of a stateful reward
    strength: str  # keyword argument of fn that sets how hard it presses for short responses
    strengths: tuple[float, float, float]  # its values in the benchmark, from weak to strong
    bench: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    # fn's other arguments in the benchmark, for the shipped policy (73 tokens on average)
    columns: tuple[str, ...] = ()  # arguments of fn that differ by prompt: columns of the data

    def bind(self, **params: Any) -> BoundReward:
        """Fix the parameters; what is left to give per prompt group is counts and columns."""
        return BoundReward(self, params)

    def bench_params(self, level: int) -> dict[str, Any]:
        """All arguments of fn at strength `level` (0, 1 or 2) of the benchmark."""
        return {**self.bench, self.strength: self.strengths[level]}


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
        given = columns or {}
        wanted = {name: given[name] for name in self.columns if given.get(name) is not None}
        arguments = {**self._params, **wanted}
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
