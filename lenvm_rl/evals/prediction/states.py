"""What is the true value of a state inside a response? Sample continuations from it and average.

The continuations of a state are a rollout file like any other: the "prompt" is the prompt and the
response up to the state, and `prompt_id` is `state_id(...)`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler
from lenvm_rl.sampling.transformers.to_file import SamplingReport, Task, sample_tasks


@dataclass(frozen=True)
class StateId:
    """Which state: `offset` response tokens into a completion of a rollout file."""

    prompt_id: str
    sample_id: int
    offset: int
    """Tokens of the response that are already written, t of s_t."""
    length: int
    """Tokens of the whole response it was taken from."""

    @property
    def position(self) -> float:
        """Relative position t / L in [0, 1)."""
        return self.offset / self.length

    def __str__(self) -> str:
        return f"{self.prompt_id}#{self.sample_id}@{self.offset}/{self.length}"

    @classmethod
    def parse(cls, text: str) -> StateId:
        """Inverse of `str`; ValueError for a prompt_id that names no state."""
        try:
            name, where = text.rsplit("@", 1)
            prompt_id, sample_id = name.rsplit("#", 1)
            offset, length = where.split("/")
            return cls(prompt_id, int(sample_id), int(offset), int(length))
        except ValueError as error:
            raise ValueError(
                f"prompt_id {text!r} names no state (prompt#sample@offset/length): make the file "
                "of continuations with lenvm_rl.evals.sample_states."
            ) from error


def pick_states(
    rows: Sequence[Rollout], count: int, *, seed: int = 0
) -> list[tuple[StateId, list[int]]]:
    """`count` random states inside responses, with the token ids that lead to them.

    Prompts take turns, the completion is uniform within its prompt and the offset uniform in
    1..L-1, so that long responses do not crowd out short ones. Responses of one token have no
    inner state. States are different; fewer come back when there are not so many.
    """
    rng = random.Random(f"lenvm-states-{seed}")
    by_prompt: dict[str, list[Rollout]] = {}
    for row in rows:
        if row.length > 1:
            by_prompt.setdefault(row.prompt_id, []).append(row)
    prompts = sorted(by_prompt)
    rng.shuffle(prompts)
    picked: dict[StateId, list[int]] = {}
    for attempt in range(20 * count):
        if not prompts or len(picked) == count:
            break
        row = rng.choice(by_prompt[prompts[attempt % len(prompts)]])
        offset = rng.randrange(1, row.length)
        state = StateId(row.prompt_id, row.sample_id, offset, row.length)
        picked[state] = [*row.prompt_ids, *row.response_ids[:offset]]
    return list(picked.items())


def sample_states(
    sampler: ContinuousSampler,
    rollouts: str | Path,
    out: str | Path,
    *,
    policy_name: str,
    count: int = 160,
    n: int = 32,
    max_tokens: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SamplingReport:
    """Sample `n` continuations from each of `count` random states of the responses in `rollouts`.

    Sampling settings are read from the rows, so that the continuations follow the same policy; a
    response and its continuation share one token limit.

    Args:
        sampler: the policy that wrote `rollouts`.
        rollouts: rollout file with the responses.
        out: rollout directory to write; an interrupted run is continued.
        count: states.
        n: continuations per state.
        max_tokens: limit of response plus continuation; the rows' own when None.
    Raises:
        ValueError: the rows were sampled with different settings, or have no inner state.
    """
    reader = RolloutReader(rollouts)
    rows = sorted(reader.iter_rows(), key=lambda row: (row.prompt_id, row.sample_id))
    settings = _common_settings(rows, str(rollouts))
    limit = max_tokens or settings.pop("max_tokens", None)
    settings.pop("max_tokens", None)
    if limit is None:
        raise ValueError(f"{rollouts} does not say max_tokens: give it, as the policy's limit.")
    states = pick_states(rows, count, seed=seed)
    if not states:
        raise ValueError(
            f"{rollouts} holds no response of two tokens or more, so there are no inner states."
        )
    tasks = [
        Task(
            prompt_id=str(state),
            prompt_ids=ids,
            n=n,
            max_tokens=max(1, limit - state.offset),
            data_source="states",
        )
        for state, ids in states
    ]
    return sample_tasks(
        sampler,
        tasks,
        out,
        tokenizer_sha=reader.metadata["tokenizer_sha"],
        policy_name=policy_name,
        seed=seed,
        progress=progress,
        **settings,
    )


def _common_settings(rows: Sequence[Rollout], source: str) -> dict:
    """Sampling settings shared by all rows, without their seeds; unknown ones are left out."""
    found = {
        tuple((key, value) for key, value in row.sampling.items() if key != "seed") for row in rows
    }
    if len(found) != 1:
        raise ValueError(
            f"{source} mixes sampling settings {sorted(map(str, found))[:3]}: a value is defined "
            "for one policy and one way of sampling it. Split the file."
        )
    return {key: value for key, value in found.pop() if value is not None}
