"""Batches of completions that are there already, from a rollout file.

Batches run on across the border of an epoch, so each has the full number of completions but the
last of the run. The position in the file is saved with every checkpoint: a run that was killed
continues with the very next completion.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from tensordict import TensorDict

from lenvm_rl.rollouts import Rollout, RolloutStream
from lenvm_rl.verl.pretrain.facts import RolloutFacts
from lenvm_rl.verl.pretrain.settings import LengthValueSettings

logger = logging.getLogger(__name__)

TRUNCATED_WARNING = 0.01
"""Share of truncated completions above which dropping them visibly biases what is learned."""


class NoGeneration:
    """verl's agent loop manager of a run that samples nothing."""

    @classmethod
    def create(cls, config: DictConfig, **_: Any) -> NoGeneration:
        """As verl calls it."""
        return cls()

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Never called: offline training has its completions.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("offline training does not sample; use lenvm.mode=on_policy for that.")


class OfflineSource:
    """Batches of completions from a rollout file, for `epochs` passes.

    Args:
        facts: of the file.
        settings: the `lenvm:` block.
        batch_size: completions per update.
        epochs: passes over the file.
    Raises:
        ValueError: every completion was truncated and truncated completions are dropped.
    """

    def __init__(
        self, facts: RolloutFacts, settings: LengthValueSettings, *, batch_size: int, epochs: int
    ):
        self._drop_truncated = settings.truncated == "drop"
        self.facts = facts
        self.rows = facts.finished_rows if self._drop_truncated else facts.rows
        """Completions of an epoch that are trained on."""
        self.batch_size = batch_size
        self.seen = 0
        """Completions handed out since the start of the run."""
        if not self.rows:
            raise ValueError(
                f"all {facts.rows} completions of {facts.path} were truncated by the token "
                "limit, and lenvm.truncated=drop leaves them out. Sample with more tokens, or set "
                "lenvm.truncated=censored."
            )
        if self._drop_truncated and facts.share_truncated > TRUNCATED_WARNING:
            logger.warning(
                "%.1f %% of the completions in %s were truncated by the token limit and are "
                "dropped: short responses are over-represented. Sample with more tokens, or set "
                "lenvm.truncated=censored.",
                100 * facts.share_truncated,
                facts.path,
            )
        self.steps_per_epoch = -(-self.rows // batch_size)
        self.total_steps = -(-self.rows * epochs // batch_size)
        self._stream = RolloutStream(
            facts.path,
            seed=settings.seed,
            epochs=epochs,
            window_rows=settings.window_rows,
            grouped=settings.grouped,
            columns=[],
            tokenizer_sha=facts.tokenizer_sha,
        )

    @property
    def epoch(self) -> float:
        """Passes over the file so far."""
        return self.seen / self.rows

    def next_rows(self) -> list[Rollout]:
        """The next batch; shorter at the end of the last epoch, empty after it."""
        rows: list[Rollout] = []
        while len(rows) < self.batch_size:
            more = self._stream.batch(self.batch_size - len(rows))
            if not more:
                break
            rows += [row for row in more if not (self._drop_truncated and row.truncated)]
        self.seen += len(rows)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Position of the next completion, as JSON-able values."""
        return {"seen": self.seen, "stream": self._stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            ValueError: another file, seed, window or grouping than that of the saved run.
        """
        self._stream.load_state_dict(dict(state["stream"]))
        self.seen = state["seen"]
