"""The simulated server: small cases by hand, a plain loop, and what no order can change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenvm_rl.evals.scheduling.queueing import Server, poisson_arrivals, serve


def constant(values, lengths):
    return [np.full(n, v, dtype=float) for v, n in zip(values, lengths, strict=True)]


def remaining(lengths):
    return [np.arange(n, 0, -1, dtype=float) for n in lengths]


def run(arrival, lengths, keys, server, **kwargs):
    return serve(np.array(arrival, dtype=float), np.array(lengths), keys, server, **kwargs)


def test_one_slot_by_hand():
    lengths = [3, 1, 2]
    one = Server(slots=1)
    fcfs = run([0, 0, 0], lengths, constant([0, 0, 0], lengths), one)
    assert fcfs.finish.tolist() == [3, 4, 6]
    assert fcfs.first_token.tolist() == [1, 4, 5]
    shortest = run([0, 0, 0], lengths, constant(lengths, lengths), one)
    assert shortest.finish.tolist() == [6, 1, 3]
    assert fcfs.latency.mean() == pytest.approx(13 / 3)
    assert shortest.latency.mean() == pytest.approx(10 / 3)
    assert fcfs.steps == shortest.steps == 6 and fcfs.preemptions == 0


def test_two_slots_by_hand():
    # Request 2 enters when request 1 leaves after step 1, and ends after step 3; at half a second.
    lengths = [4, 1, 2, 1]
    served = run(
        [0, 0, 0, 0.9], lengths, constant([0, 0, 0, 1], lengths), Server(slots=2, step_seconds=0.5)
    )
    assert served.finish.tolist() == [2.0, 0.5, 1.5, 2.0]
    assert served.latency.tolist() == pytest.approx([2.0, 0.5, 1.5, 1.1])
    assert served.steps == 4 and served.slot_steps == 8


def test_the_time_of_a_step_grows_with_what_runs():
    lengths = [2, 1]
    server = Server(slots=2, step_seconds=1.0, step_seconds_per_request=0.5)
    served = run([0, 0], lengths, constant([0, 0], lengths), server)
    assert served.finish.tolist() == [2.0 + 1.5, 2.0]  # two requests take 2 s a step, one 1.5 s
    assert server.capacity == 1.0


def test_shortest_remaining_puts_a_long_request_back():
    lengths = [5, 1]
    always = run([0, 1], lengths, remaining(lengths), Server(slots=1), keeps_slot_after=np.inf)
    assert always.finish.tolist() == [6, 2] and always.preemptions == 1
    never = run([0, 1], lengths, remaining(lengths), Server(slots=1))
    assert never.finish.tolist() == [5, 6] and never.preemptions == 0


def test_a_request_keeps_its_slot_after_enough_tokens():
    lengths = [5, 1]
    for tokens, finish in ((1, [5, 6]), (2, [6, 2])):
        served = run(
            [0, 1], lengths, remaining(lengths), Server(slots=1), keeps_slot_after=float(tokens)
        )
        assert served.finish.tolist() == finish


def test_what_it_costs_to_resume():
    lengths = [5, 1]
    server = Server(slots=1, resume_steps=3)
    served = run([0, 1], lengths, remaining(lengths), server, keeps_slot_after=np.inf)
    assert served.finish.tolist() == [9, 2]
    assert served.slot_steps == 6 + 3


def test_an_estimate_that_changes_is_used():
    # Both look equal at first; after one token the first one turns out long and yields.
    lengths = [4, 2]
    keys = [np.array([2.0, 9.0, 9.0, 9.0]), np.array([2.0, 1.0])]
    served = run([0, 0], lengths, keys, Server(slots=1), keeps_slot_after=np.inf)
    assert served.finish.tolist() == [6, 3]


def plain_loop(arrival, lengths, keys, slots, hold):
    """The same server, one step at a time, with lists."""
    n, now = len(lengths), 0.0
    done, finish, running = [0] * n, [None] * n, set()
    while None in finish:
        here = [i for i in range(n) if arrival[i] <= now and finish[i] is None]
        if not here:
            now = min(arrival[i] for i in range(n) if finish[i] is None)
            continue
        kept = [i for i in here if i in running and done[i] >= hold[i]]
        rest = sorted(
            (i for i in here if i not in kept),
            key=lambda i: (keys[i][done[i]], i not in running, i),
        )
        running = set(kept + rest[: slots - len(kept)])
        now += 1.0
        for i in list(running):
            done[i] += 1
            if done[i] == lengths[i]:
                finish[i] = now
                running.remove(i)
    return finish


@st.composite
def workloads(draw):
    n = draw(st.integers(1, 9))
    lengths = draw(st.lists(st.integers(1, 7), min_size=n, max_size=n))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.7]), min_size=n, max_size=n))
    keys = [
        np.array(draw(st.lists(st.integers(0, 4), min_size=k, max_size=k)), float) for k in lengths
    ]
    hold = draw(st.lists(st.sampled_from([0.0, 1.0, 3.0, np.inf]), min_size=n, max_size=n))
    return np.cumsum(gaps), lengths, keys, draw(st.integers(1, 4)), hold


@settings(max_examples=200, deadline=None)
@given(workloads())
def test_equal_to_a_plain_loop_and_no_token_is_lost(workload):
    arrival, lengths, keys, slots, hold = workload
    served = run(arrival, lengths, keys, Server(slots=slots), keeps_slot_after=np.array(hold))
    assert served.finish == pytest.approx(plain_loop(arrival, lengths, keys, slots, hold))
    assert served.slot_steps == sum(lengths)
    assert (served.latency >= np.array(lengths) - 1e-9).all()
    assert (served.first_token > served.arrival).all()
    assert (served.first_token <= served.finish).all()


def test_no_order_changes_when_one_slot_falls_idle():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 200)
    server = Server(slots=1)
    arrival = poisson_arrivals(lengths, load=0.8, server=server, rng=rng)
    ends = [
        serve(arrival, lengths, keys, server, keeps_slot_after=hold)
        for keys, hold in (
            (constant(arrival, lengths), 0.0),
            (constant(lengths, lengths), 0.0),
            (remaining(lengths), np.inf),
            (constant(rng.random(200), lengths), np.inf),
        )
    ]
    assert len({round(float(end.finish.max()), 6) for end in ends}) == 1
    assert len({end.steps for end in ends}) == 1
    # ... and shortest remaining time first has the least mean latency of all (Schrage 1968).
    assert min(end.latency.mean() for end in ends) == ends[2].latency.mean()


def test_arrivals_ask_for_the_given_share_of_the_capacity():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 100, 20_000)
    server = Server(slots=8, step_seconds=0.02)
    arrival = poisson_arrivals(lengths, load=0.7, server=server, rng=rng)
    assert lengths.sum() / arrival[-1] / server.capacity == pytest.approx(0.7, rel=0.03)


def test_impossible_servers_are_refused():
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        Server(slots=0)
    with pytest.raises(ValueError, match="takes no time"):
        Server(step_seconds=0.0)
    with pytest.raises(ValueError, match="resume_steps"):
        Server(resume_steps=-1)
    with pytest.raises(ValueError, match="load must be positive"):
        poisson_arrivals(np.array([1]), load=0.0, server=Server(), rng=np.random.default_rng(0))
