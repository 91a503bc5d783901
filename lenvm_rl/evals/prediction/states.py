"""Values of states inside responses, against the mean outcome of continuations sampled from them.

The continuations of a state are a rollout file like any other: the "prompt" is the prompt and the
response up to the state, and `prompt_id` is a `StateId`. The mean of n continuations has sampling
variance s**2 / n (s the standard deviation within the state); the noise-corrected R2 takes it out
of both the error and the variance to be explained.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.core import length_to_u, noise_corrected_r2, r2, value_of_logit
from lenvm_rl.evals.prediction.errors import Table, group_lengths
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.forward import iter_logits, model_space
from lenvm_rl.rollouts import Rollout, RolloutReader
from lenvm_rl.sampling.fill import SamplingReport, fill
from lenvm_rl.sampling.run import EngineFacts, SamplingRun, Task, TokenSampling
from lenvm_rl.sampling.transformers.engine import TransformersEngine
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler

QUARTERS = ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


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
                "of continuations with `lenvm eval prediction --policy`."
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
    facts = EngineFacts(
        policy=policy_name,
        tokenizer_sha=reader.metadata["tokenizer_sha"],
        vocab_size=sampler.vocab_size,
        eos_ids=sorted(sampler.eos_token_ids),
    )
    engine = TransformersEngine(sampler, facts)
    run = SamplingRun.of(engine, tasks, TokenSampling(seed=seed, **settings))
    return fill(run, out, engine, progress=progress)


def state_table(model: LengthValueModel, reader: RolloutReader, *, token_budget: int) -> Table:
    """One row per state: the model's discounted length u = -V and the mean of its continuations.

    Args:
        model: a LenVM with its gamma.
        reader: rollouts of `sample_states`; every state needs two continuations.
    """
    gamma = model.config.require_gamma()
    rows = sorted(reader.iter_rows(), key=lambda row: (row.prompt_id, row.sample_id))
    names, lengths, mask = group_lengths(rows)
    count = mask.sum(1)
    if int(count.min()) < 2:
        poorest = names[int(count.argmin())]
        raise ValueError(
            f"{reader.path}: state {poorest} has {int(count.min())} continuation; its spread, and "
            "so the sampling noise, is unknown. Sample at least two per state (32 are good)."
        )
    u = length_to_u(lengths.double(), gamma=gamma)
    mean = (u * mask).sum(1) / count
    variance = ((u - mean[:, None]).square() * mask).sum(1) / (count - 1)
    first = {row.prompt_id: row for row in rows}
    predicted = {
        row.prompt_id: -value_of_logit(z[:1].double(), **model_space(model)).item()
        for row, z in iter_logits(model, first.values(), token_budget=token_budget)
    }
    return [
        {
            "state": name,
            "position": StateId.parse(name).position,
            "continuations": int(count[i]),
            "lenvm": predicted[name],
            "monte_carlo": mean[i].item(),
            "std_of_mean": math.sqrt(variance[i].item() / int(count[i])),
        }
        for i, name in enumerate(names)
    ]


def state_metrics(
    table: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, float], Table]:
    """Figures of `state_table`, and error and bias by quarter of the response.

    `r2_monte_carlo` is noise-corrected, `r2_monte_carlo_raw` is not. In a quarter, `bias` is the
    mean of u_hat - u and `rmse` the root of the noise-corrected mean squared error. Horizons are
    unitless in [0, 1).
    """
    u_hat = torch.tensor([row["lenvm"] for row in table], dtype=torch.float64)
    u = torch.tensor([row["monte_carlo"] for row in table], dtype=torch.float64)
    noise = torch.tensor([row["std_of_mean"] for row in table], dtype=torch.float64).square()
    enough = len(table) > 1
    figures = {
        "states": len(table),
        "continuations_per_state": sum(row["continuations"] for row in table) / len(table),
        "r2_monte_carlo": noise_corrected_r2(-u_hat, -u, noise) if enough else math.nan,
        "r2_monte_carlo_raw": r2(-u_hat, -u) if enough else math.nan,
        "mae_monte_carlo": (u_hat - u).abs().mean().item(),
        "bias_monte_carlo": (u_hat - u).mean().item(),
    }
    position = torch.tensor([row["position"] for row in table])
    quarters = []
    for low, high in QUARTERS:
        inside = (position >= low) & (position < high)
        if not inside.any():
            continue
        error = (u_hat - u)[inside]
        quarters.append(
            {
                "from": low,
                "to": high,
                "states": int(inside.sum()),
                "predicted": u_hat[inside].mean().item(),
                "measured": u[inside].mean().item(),
                "bias": error.mean().item(),
                "rmse": math.sqrt(max(0.0, (error.square().mean() - noise[inside].mean()).item())),
            }
        )
    return figures, quarters


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
