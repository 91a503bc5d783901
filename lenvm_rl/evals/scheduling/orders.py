"""Orders of service: whose turn it is, by which number, and who may be preempted for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lenvm_rl.evals.scheduling.queueing import Patience, Served, Server, serve

Remaining = list[np.ndarray]
"""For each request [L]: predicted tokens still to come at s_0 .. s_{L-1}, or another key."""
ALONG_ONLY = ("survival", "quantile")
"""Predictors that say the same of all requests before their first token."""
AT_START_ONLY = ("prompt", "lenvm-tie")
"""Predictors for the order in which requests enter: of a prompt, or published for it."""
MARGIN = "lenvm-p90"
"""What a bound on latency counts with, where it is known: a mean is too short half of the time."""
QUANTUM = 32
"""Tokens of the first level of the feedback order; each level has twice those of the one before."""


@dataclass(frozen=True)
class Order:
    """One way to rank requests."""

    name: str
    predictor: str
    """Whose number is the key; of fcfs and feedback none."""
    preempts: str
    """never, limited (until a share of the first prediction is written), or always."""
    aged: bool = False
    patient: bool = False

    @property
    def perfect(self) -> str:
        """The order of perfect knowledge under the same rule of preemption."""
        return {"never": "predicted-true", "limited": "remaining-true", "always": "srpt"}[
            self.preempts
        ]


def orders_of(known: Mapping[str, Remaining]) -> list[Order]:
    """Every order that these predictors give; `fcfs` comes first."""
    at_start = [name for name in known if name not in ALONG_ONLY]
    at_start.insert(-1, "random")
    along = [name for name in known if name not in AT_START_ONLY]
    bounded = [name for name in ("lenvm", "lenvm-gittins", "true") if name in known]
    return [
        Order("fcfs", "", "never"),
        *(Order(f"predicted-{name}", name, "never") for name in at_start),
        *(Order(f"remaining-{name}", name, "limited") for name in along),
        Order("srpt", "true", "always"),
        Order("feedback", "", "always"),
        *(Order(f"aged-{name}", name, "always", aged=True) for name in bounded[:1]),
        *(Order(f"patient-{name}", name, "always", patient=True) for name in bounded),
    ]


@dataclass(frozen=True, eq=False)
class Traffic:
    """N requests, and what is predicted of them."""

    arrival: np.ndarray
    """[N] ascending."""
    lengths: np.ndarray
    """[N] response tokens."""
    prompts: np.ndarray
    """[N] prompt tokens."""
    known: Mapping[str, Sequence[np.ndarray]]
    """By predictor, for each request [L]."""
    random: np.ndarray
    """[N] a number drawn for each."""

    @classmethod
    def drawn(
        cls,
        picked: np.ndarray,
        arrival: np.ndarray,
        lengths: np.ndarray,
        prompts: np.ndarray,
        known: Mapping[str, Remaining],
        rng: np.random.Generator,
    ) -> Traffic:
        """The requests `picked` [N] of a file's rows, arriving at `arrival` [N]."""
        of_requests = {name: [rows[i] for i in picked] for name, rows in known.items()}
        random = rng.random(len(picked))
        return cls(arrival, lengths[picked], prompts[picked], of_requests, random)

    def served(
        self, order: Order, server: Server, *, preempt_until: float, aging: float, bound: float
    ) -> Served:
        """Serve them in one order.

        Args:
            order: whose turn it is.
            server: the replica.
            preempt_until: share of the first prediction until which `limited` orders may preempt.
            aging: tokens that a unit of time of waiting is worth, in aged orders.
            bound: latency to keep in patient orders.
        """
        predicted = self.known.get(order.predictor)
        hold: np.ndarray | float = np.inf if order.preempts == "always" else 0.0
        if order.preempts == "limited":  # other keys of the LenVM are held to its own length
            name = "lenvm" if order.predictor.startswith("lenvm") else order.predictor
            hold = np.floor(preempt_until * np.array([left[0] for left in self.known[name]]))
        patience = None
        if order.patient:
            name = order.predictor if order.predictor == "true" else MARGIN
            left = self.known.get(name, self.known[order.predictor.partition("-")[0]])
            patience = Patience(left, bound)
        return serve(
            self.arrival,
            self.lengths,
            self._keys(order, predicted),
            server,
            prompts=self.prompts,
            keeps_slot_after=hold,
            aging=aging if order.aged else 0.0,
            patience=patience,
        )

    def _keys(self, order: Order, predicted: Sequence[np.ndarray] | None) -> Sequence[np.ndarray]:
        if order.name == "feedback":
            return [np.floor(np.log2(np.arange(n) / QUANTUM + 1)) for n in self.lengths]
        if predicted is not None and order.preempts != "never":
            return predicted
        by_start = {"": self.arrival, "random": self.random}.get(order.predictor)
        if by_start is None:
            assert predicted is not None
            by_start = [left[0] for left in predicted]
        return [np.full(n, key) for key, n in zip(by_start, self.lengths, strict=True)]
