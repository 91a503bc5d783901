"""Discrete-event simulation of a server with continuous batching, under any order of service.

One replica, step by step. In a step every request that runs and has been read writes one token;
between steps those that have ended leave, and others enter:

    order      the requests are ranked by their keys, smallest first; ties: who runs already, then
               who came first
    keys       one number per request and state s_t, so that an estimate may change as tokens come:
               arrival time (first come, first served), predicted length, predicted remaining length
    aging      `aging` times the arrival time is part of the key: a second of waiting is worth so
               many tokens
    slots      at most `slots` run. One that has written `keeps_slot_after` tokens is not preempted
               for another's sake: with 0 none ever is, with infinity all may be; TRAIL (arXiv
               2410.01035) uses a share of the first prediction
    memory     at most `memory` tokens of keys and values: prompt and response so far of all that
               run. They enter in rank until one does not fit; when the running ones outgrow it, the
               last in rank is preempted (as vLLM does)
    reading    a prompt is read when its request enters, at most `prefill_tokens` of all prompts in
               a step, and each token read adds `prefill_seconds` to the step. Who is preempted
               loses its keys and values and is read again, what it has written included
    patience   who would miss a bound on latency goes first; see `Patience`

The figures compare orders; they are not the latency of an engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Server:
    """One replica; times are in steps unless `step_seconds` says otherwise."""

    slots: int = 16
    """Requests that run at a time, at least 1."""
    step_seconds: float = 1.0
    """Seconds of a step, before what each request adds; with 1, times count steps."""
    step_seconds_per_request: float = 0.0
    """Seconds that every running request adds to a step."""
    memory: int | None = None
    """Tokens of keys and values that fit, prompts included; default: it is never short."""
    prefill_seconds: float = 0.0
    """Seconds that every prompt token read adds to its step; a preempted request is read again."""
    prefill_tokens: int | None = None
    """Prompt tokens read in one step, of all requests; default: whole prompts at once."""

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}: nothing would run.")
        for name in ("memory", "prefill_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 token, got {value}.")
        if not 0 <= self.prefill_seconds < math.inf:
            raise ValueError(f"prefill_seconds must be at least 0, got {self.prefill_seconds}.")
        if not (self.step_seconds_per_request >= 0 and self.step_time(1) > 0):
            raise ValueError(
                f"a step of {self.step_seconds} s and {self.step_seconds_per_request} s per "
                "request takes no time: give positive seconds."
            )

    def step_time(self, running: int) -> float:
        """Time of a step with `running` requests, nothing being read."""
        return self.step_seconds + self.step_seconds_per_request * running

    def capacity(self, lengths: np.ndarray, prompts: np.ndarray | None = None) -> float:
        """Tokens written per unit of time when it is never idle and nobody is preempted.

        With `b = min(slots, memory / mean tokens that a running request holds)` requests at a time,
        a request of L tokens and a prompt of P takes `L step_time(b) / b + P prefill_seconds`.

        Args:
            lengths: [N] response tokens of the traffic.
            prompts: [N] prompt tokens; None means none.
        """
        read = np.zeros(len(lengths)) if prompts is None else prompts
        batch = float(self.slots)
        if self.memory is not None:
            held = (lengths * (read + (lengths + 1) / 2)).sum() / lengths.sum()
            batch = min(batch, max(1.0, self.memory / held))
        step = self.step_seconds + self.step_seconds_per_request * batch
        return float(
            lengths.sum() / (lengths.sum() * step / batch + read.sum() * self.prefill_seconds)
        )


@dataclass(frozen=True, eq=False)
class Served:
    """What became of N requests; times as in `Server`."""

    arrival: np.ndarray
    """[N] given."""
    first_token: np.ndarray
    """[N] end of the step that wrote the first token."""
    finish: np.ndarray
    """[N] end of the step that wrote the last token."""
    preemptions: int
    """How often a running request was preempted."""
    read: int
    """Tokens read: prompts, and what was read again after preemptions."""
    steps: int
    """Steps with at least one running request."""
    slot_steps: int
    """Sum over steps of the running requests: all tokens, and waiting to be read."""
    busy: float
    """Time of those steps."""

    @property
    def latency(self) -> np.ndarray:
        """[N] from arrival to the last token."""
        return self.finish - self.arrival

    @property
    def makespan(self) -> float:
        """From the first arrival to the last token."""
        return float(self.finish.max() - self.arrival[0])


@dataclass(frozen=True, eq=False)
class Patience:
    """A bound on latency: who would miss it goes first.

    A request is urgent as soon as

        age + predicted remaining tokens * time of a full step  >=  bound

    Urgent requests go before all others, those that came first before the others. Until then the
    order is that of the keys, so that short requests pass long ones for as long as these have time.
    """

    remaining: Sequence[np.ndarray]
    """For each request [L]: predicted tokens to come at s_0 .. s_{L-1}."""
    bound: float
    """Latency to keep, in the server's time, positive."""


def arrivals(
    lengths: np.ndarray,
    *,
    load: float,
    capacity: float,
    rng: np.random.Generator,
    burstiness: float = 1.0,
) -> np.ndarray:
    """[N] ascending arrival times at the rate load * capacity / mean length.

    Gaps are gamma distributed with shape `burstiness`, as in vLLM's benchmark: 1 is a Poisson
    process, below 1 requests come in bursts (the gaps' deviation is 1 / sqrt(burstiness) means). At
    load 1 as many tokens are asked for as the server can write; above it the queue grows for as
    long as requests keep coming.

    Args:
        lengths: [N] response tokens.
        load: share of the capacity, positive.
        capacity: tokens per unit of time.
        rng: draws the gaps.
        burstiness: shape of the gaps, positive.
    """
    for name, value, what in (
        ("load", load, "it is the share of the capacity"),
        ("burstiness", burstiness, "it is the shape of the gaps, 1 for Poisson arrivals"),
    ):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}: {what}.")
    gap = lengths.mean() / (load * capacity)
    gaps = rng.gamma(burstiness, 1 / burstiness, size=len(lengths))
    return np.cumsum(gaps) * gap


def serve(
    arrival: np.ndarray,
    lengths: np.ndarray,
    keys: Sequence[np.ndarray],
    server: Server,
    *,
    prompts: np.ndarray | None = None,
    keeps_slot_after: np.ndarray | float = 0.0,
    aging: float = 0.0,
    patience: Patience | None = None,
) -> Served:
    """Run all requests to their end.

    Args:
        arrival: [N] ascending times.
        lengths: [N] tokens to write, at least 1; nothing is decided by them but when to leave.
        keys: for each request [L]: its place in the order at s_0 .. s_{L-1}, smaller first.
        server: slots, memory and times.
        prompts: [N] tokens to read first; None: nothing is read.
        keeps_slot_after: [N] or one number: tokens after which it is not preempted.
        aging: tokens of the key that a unit of time of waiting is worth, at least 0.
        patience: who goes first for having waited long; None: nobody.
    Raises:
        ValueError: a request that does not fit into the server's memory alone.
    """
    read = np.zeros(len(arrival), dtype=np.int64) if prompts is None else np.asarray(prompts)
    assert len(lengths) == len(arrival) == len(keys) == len(read)
    assert bool((np.diff(arrival) >= 0).all())
    if server.memory is not None and int((read + lengths).max()) > server.memory:
        raise ValueError(
            f"a request of {int((read + lengths).max())} tokens does not fit into a memory of "
            f"{server.memory}: it could never end. Give more memory, or leave such requests out."
        )
    order = _flat(keys, lengths) + aging * np.repeat(arrival, lengths)
    hold = np.broadcast_to(np.asarray(keeps_slot_after, dtype=np.float64), (len(arrival),))
    return _Run(server, arrival, np.asarray(lengths), read, order, hold, patience).to_end()


def _flat(parts: Sequence[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    assert all(len(part) == length for part, length in zip(parts, lengths, strict=True))
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])


@dataclass(eq=False)
class _Run:
    """State of a simulation; arrays are [N], `present` the requests here, by arrival."""

    server: Server
    arrival: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray
    keys: np.ndarray
    hold: np.ndarray
    patience: Patience | None

    def __post_init__(self) -> None:
        n = len(self.arrival)
        self.offset = np.cumsum(self.lengths) - self.lengths
        self.done, self.held = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        self.running = np.zeros(n, dtype=bool)
        self.first_token, self.finish = np.full(n, math.nan), np.full(n, math.nan)
        self.present = np.empty(0, dtype=np.int64)
        self.now = self.busy = 0.0
        self.arrived = self.preemptions = self.steps = self.slot_steps = self.read = 0

    @cached_property
    def left(self) -> np.ndarray:
        """Predicted tokens to come at every state, flat as `keys`."""
        assert self.patience is not None
        return _flat(self.patience.remaining, self.lengths)

    def to_end(self) -> Served:
        n = len(self.arrival)
        while self.arrived < n or self.present.size:
            self._arrive()
            if self.present.size:
                self._write(self._choose())
            else:
                self.now = float(self.arrival[self.arrived])
        return Served(
            self.arrival,
            self.first_token,
            self.finish,
            self.preemptions,
            self.read,
            self.steps,
            self.slot_steps,
            self.busy,
        )

    def _arrive(self) -> None:
        until = int(np.searchsorted(self.arrival, self.now, side="right"))
        if until == self.arrived:
            return
        self.present = np.concatenate([self.present, np.arange(self.arrived, until)])
        self.arrived = until

    def _urgent(self, here: np.ndarray) -> np.ndarray:
        """[n] bool: who may not wait any longer."""
        if self.patience is None:
            return np.zeros(len(here), dtype=bool)
        step = self.server.step_time(self.server.slots)
        takes = self.left[self.offset[here] + self.done[here]] * step
        return self.now - self.arrival[here] + takes >= self.patience.bound

    def _choose(self) -> np.ndarray:
        """Who runs in the next step, in rank; the others are preempted."""
        here = self.present
        kept = self.running[here] & (self.done[here] >= self.hold[here])
        if here.size > self.server.slots or self.server.memory is not None:
            urgent = self._urgent(here)
            rank = self.keys[self.offset[here] + self.done[here]]
            rank = np.where(urgent, self.arrival[here], rank)
            here = here[np.lexsort((here, ~self.running[here], rank, ~urgent, ~kept))]
        chosen = here[: self.server.slots]
        if self.server.memory is not None:
            needed = np.cumsum(self.prompts[chosen] + self.done[chosen] + 1)
            chosen = chosen[needed <= self.server.memory]
        before = self.running.copy()
        self.running[:] = False
        self.running[chosen] = True
        back = before & ~self.running
        self.preemptions += int(back.sum())
        self.held[back] = 0
        return chosen

    def _read(self, chosen: np.ndarray) -> np.ndarray:
        """Tokens of each chosen request that are read in the next step."""
        missing = self.prompts[chosen] + self.done[chosen] - self.held[chosen]
        if self.server.prefill_tokens is None:
            return missing
        return np.diff(np.minimum(np.cumsum(missing), self.server.prefill_tokens), prepend=0)

    def _write(self, chosen: np.ndarray) -> None:
        """Time passes until something can change."""
        reads = self._read(chosen)
        whole = int(reads.sum())
        self.held[chosen] += reads
        writes = chosen[self.held[chosen] == self.prompts[chosen] + self.done[chosen]]
        time = self.server.step_time(chosen.size)
        k = 1 if whole or len(writes) < len(chosen) else self._steps(chosen, time)
        passed = k * time + whole * self.server.prefill_seconds
        begins = writes[self.done[writes] == 0]
        self.first_token[begins] = self.now + passed - (k - 1) * time
        self.done[writes] += k
        self.held[writes] += k
        self.now += passed
        self.busy += passed
        self.read += whole
        self.steps += k
        self.slot_steps += k * chosen.size
        ended = writes[self.done[writes] == self.lengths[writes]]
        if ended.size:
            self.finish[ended] = self.now
            self.running[ended] = False
            self.present = self.present[self.done[self.present] < self.lengths[self.present]]

    def _steps(self, chosen: np.ndarray, time: float) -> int:
        """Steps in which the same requests run, all of them writing."""
        waiting = chosen.size < self.present.size
        yields = bool((self.done[chosen] < self.hold[chosen]).any())
        if yields and waiting:
            return 1  # keys move with every token
        k = int((self.lengths[chosen] - self.done[chosen]).min())
        if self.server.memory is not None:
            room = self.server.memory - int((self.prompts[chosen] + self.done[chosen]).sum())
            k = min(k, room // chosen.size)
        if self.arrived < len(self.arrival) and (yields or chosen.size < self.server.slots):
            k = min(k, max(1, math.ceil((self.arrival[self.arrived] - self.now) / time)))
        return k
