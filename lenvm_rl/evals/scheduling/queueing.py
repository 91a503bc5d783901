"""Discrete-event simulation of a server with continuous batching, under any order of service.

One replica: `slots` requests run at a time; in one step every
running request writes one token; between steps those that have ended leave and waiting ones enter.

    order      of those that may run, the smallest keys run; ties: who runs already, then who came
               first
    keys       one number per request and state s_t, so that an estimate may change as tokens come:
               arrival time (first come, first served), predicted length, predicted remaining length
    slots      a running request that has written `keeps_slot_after` tokens is not preempted any
               more: with 0 none ever is, with infinity all may be; TRAIL (arXiv 2410.01035) uses a
               share of the first prediction

What is left out: the memory of the keys and values is never short (a preempted request keeps
its own, unless `resume_steps` says what reading it again costs), and a prompt is read in its first
step at no further cost. So the figures compare orders; they are not the latency of an engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    resume_steps: int = 0
    """Cost of a preemption, in steps without a token when the request runs again."""

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}: nothing would run.")
        if self.resume_steps < 0:
            raise ValueError(f"resume_steps must be at least 0, got {self.resume_steps}.")
        if not (self.step_seconds_per_request >= 0 and self.step_time(1) > 0):
            raise ValueError(
                f"a step of {self.step_seconds} s and {self.step_seconds_per_request} s per "
                "request takes no time: give positive seconds."
            )

    def step_time(self, running: int) -> float:
        """Time of a step with `running` requests."""
        return self.step_seconds + self.step_seconds_per_request * running

    @property
    def capacity(self) -> float:
        """Tokens per unit of time with all slots taken."""
        return self.slots / self.step_time(self.slots)


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
    steps: int
    """Steps with at least one running request."""
    slot_steps: int
    """Sum over steps of the running requests: all tokens, and what resuming cost."""

    @property
    def latency(self) -> np.ndarray:
        """[N] from arrival to the last token."""
        return self.finish - self.arrival


def poisson_arrivals(
    lengths: np.ndarray, *, load: float, server: Server, rng: np.random.Generator
) -> np.ndarray:
    """[N] ascending arrival times: exponential gaps, rate = load * capacity / mean length.

    At load 1 as many tokens are asked for as the server can write; above it the queue grows for as
    long as requests keep coming.
    """
    if not load > 0:
        raise ValueError(f"load must be positive, got {load}: it is the share of the capacity.")
    gap = lengths.mean() / (load * server.capacity)
    return np.cumsum(rng.exponential(size=len(lengths))) * gap


def serve(
    arrival: np.ndarray,
    lengths: np.ndarray,
    keys: Sequence[np.ndarray],
    server: Server,
    *,
    keeps_slot_after: np.ndarray | float = 0.0,
) -> Served:
    """Run all requests to their end.

    Args:
        arrival: [N] ascending times.
        lengths: [N] tokens to write, at least 1; nothing is decided by them but when to leave.
        keys: for each request [L]: its place in the order at s_0 .. s_{L-1}, smaller first.
        server: slots and step time.
        keeps_slot_after: [N] or one number: tokens after which it is not preempted.
    """
    n = len(arrival)
    assert len(lengths) == n == len(keys) and bool((np.diff(arrival) >= 0).all())
    assert all(len(key) == length for key, length in zip(keys, lengths, strict=True))
    flat = np.concatenate([np.asarray(key, dtype=np.float64) for key in keys])
    offset = np.cumsum(lengths) - lengths
    hold = np.broadcast_to(np.asarray(keeps_slot_after, dtype=np.float64), (n,))
    done, stall = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    running = np.zeros(n, dtype=bool)
    first_token, finish = np.full(n, math.nan), np.full(n, math.nan)
    present = np.empty(0, dtype=np.int64)  # arrived and not finished, by arrival
    now, arrived = 0.0, 0
    preemptions = steps = slot_steps = 0
    while arrived < n or present.size:
        # 1. who is here
        until = int(np.searchsorted(arrival, now, side="right"))
        present = np.concatenate([present, np.arange(arrived, until)])
        arrived = until
        if not present.size:
            now = float(arrival[arrived])
            continue
        # 2. who runs: those that keep their slots, then the smallest keys
        kept = running[present] & ((done[present] >= hold[present]) | (stall[present] > 0))
        chosen, rest = present[kept], present[~kept]
        free = server.slots - chosen.size
        if rest.size > free:
            order = np.lexsort((rest, ~running[rest], flat[offset[rest] + done[rest]]))
            rest = rest[order[:free]]
        chosen = np.concatenate([chosen, rest])
        back = present[running[present]]
        running[present] = False
        running[chosen] = True
        back = back[~running[back]]
        preemptions += back.size
        stall[back] = server.resume_steps
        # 3. how many steps before anything can change
        time = server.step_time(chosen.size)
        k = int((lengths[chosen] - done[chosen] + stall[chosen]).min())
        may_yield = bool((done[chosen] < hold[chosen]).any())
        if may_yield and chosen.size < present.size:
            k = 1  # keys move with every token
        elif arrived < n and (may_yield or chosen.size < server.slots):
            k = min(k, max(1, math.ceil((arrival[arrived] - now) / time)))
        # 4. write
        begins = chosen[(done[chosen] == 0) & (stall[chosen] < k)]
        first_token[begins] = now + (stall[begins] + 1) * time
        waited = np.minimum(stall[chosen], k)
        stall[chosen] -= waited
        done[chosen] += k - waited
        now += k * time
        steps += k
        slot_steps += k * chosen.size
        ended = chosen[done[chosen] == lengths[chosen]]
        if ended.size:
            finish[ended] = now
            running[ended] = False
            present = present[done[present] < lengths[present]]
    return Served(arrival, first_token, finish, preemptions, steps, slot_steps)
