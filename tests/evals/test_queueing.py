"""The simulated server: small cases by hand, a plain loop, and what no order can change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenvm_rl.evals.scheduling.queueing import Patience, Server, arrivals, serve


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
    assert server.capacity(np.array(lengths)) == 1.0


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


def test_who_is_preempted_is_read_again():
    # 2 prompt tokens at half a step each: 0 begins at 0, writes its first token at 2; 1 takes its
    # slot (reads 1, writes 1) until 3.5; 0 reads 2 + 1 tokens again and writes the other four.
    server = Server(slots=1, prefill_seconds=0.5)
    served = run(
        [0, 1],
        [5, 1],
        remaining([5, 1]),
        server,
        prompts=np.array([2, 1]),
        keeps_slot_after=np.inf,
    )
    assert served.first_token.tolist() == [2, 3.5]
    assert served.finish.tolist() == [3.5 + 1.5 + 4, 3.5]
    assert served.read == 3 + 3 and served.preemptions == 1 and served.slot_steps == 6
    assert served.busy == served.makespan == 9.0


def test_prompts_are_read_in_pieces():
    # Four prompt tokens a step: the first prompt takes one step and half of the next, in which the
    # other one's two tokens are read as well, and both write.
    served = run(
        [0, 0],
        [2, 1],
        constant([0, 1], [2, 1]),
        Server(slots=2, prefill_tokens=4),
        prompts=np.array([6, 2]),
    )
    assert served.first_token.tolist() == [2, 2]
    assert served.finish.tolist() == [3, 2]
    assert served.slot_steps == 2 + 2 + 1 and served.read == 8


def test_memory_bounds_who_enters_and_who_stays():
    # 8 tokens of memory. Both prompts of 3 fit and write one token each: 8. For the second token
    # there is room for one alone: the later one goes, and is read again when the other has ended.
    lengths, prompts = [3, 2], np.array([3, 3])
    served = run([0, 0], lengths, constant([0, 1], lengths), Server(slots=2, memory=8))
    assert served.preemptions == 0  # without prompts there is room
    served = run(
        [0, 0], lengths, constant([0, 1], lengths), Server(slots=2, memory=8), prompts=prompts
    )
    assert served.finish.tolist() == [3, 4] and served.preemptions == 1
    assert served.read == 6 + 4  # its prompt and the token that it had written
    with pytest.raises(ValueError, match="6 tokens does not fit into a memory of 5"):
        run([0, 0], lengths, constant([0, 1], lengths), Server(memory=5), prompts=prompts)


def test_waiting_counts_where_requests_age():
    # At time 4 the slot is free: 1 has waited for 4, 2 for 1, which is worth 3 tokens of aging.
    lengths, arrival = [4, 6, 4], [0, 0, 3]
    for aging, finish in ((0.0, [4, 14, 8]), (0.5, [4, 14, 8]), (1.0, [4, 10, 14])):
        served = run(arrival, lengths, constant([0, 6, 4], lengths), Server(slots=1), aging=aging)
        assert served.finish.tolist() == finish


def test_who_would_miss_the_bound_goes_first():
    # The long one is put off for short ones until its age and what it has left are the bound.
    lengths = [4, 1, 1, 1, 1]
    arrival = [0, 0, 1, 2, 3]
    true = remaining(lengths)
    for bound, finish in (
        (9.0, [8, 1, 2, 3, 4]),
        (6.0, [6, 1, 2, 7, 8]),
        (1.0, [4, 5, 6, 7, 8]),
    ):
        served = run(
            arrival,
            lengths,
            true,
            Server(slots=1),
            keeps_slot_after=np.inf,
            patience=Patience(true, bound),
        )
        assert served.finish.tolist() == finish, bound


def test_capacity_is_what_a_full_server_writes():
    lengths = np.full(600, 10)
    prompts = np.full(600, 5)
    for server in (
        Server(slots=4, prefill_seconds=0.1),
        Server(slots=8, step_seconds_per_request=0.5, prefill_seconds=0.02),
        Server(slots=64, memory=170),
    ):
        served = run(
            np.zeros(600), lengths, constant(np.arange(600), lengths), server, prompts=prompts
        )
        # ... but for the end, when it empties, and for what memory cuts off
        rate = lengths.sum() / served.makespan
        assert rate == pytest.approx(server.capacity(lengths, prompts), rel=0.12)


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
    arrival = arrivals(lengths, load=0.8, capacity=1.0, rng=rng)
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


@st.composite
def servers(draw):
    """Servers and patience of all kinds, in which every request of `workloads` fits."""
    server = Server(
        slots=draw(st.integers(1, 4)),
        memory=draw(st.sampled_from([None, 12, 30])),
        prefill_seconds=draw(st.sampled_from([0.0, 0.25])),
        prefill_tokens=draw(st.sampled_from([None, 1, 3])),
        step_seconds_per_request=draw(st.sampled_from([0.0, 0.5])),
    )
    return server, draw(st.sampled_from([None, 1.0, 20.0])), draw(st.sampled_from([0.0, 0.3]))


@settings(max_examples=200, deadline=None)
@given(workloads(), servers(), st.lists(st.integers(0, 5), min_size=9, max_size=9))
def test_every_request_is_served_once_and_nobody_is_idle_who_could_work(workload, kind, prompts):
    arrival, lengths, keys, _, hold = workload
    server, bound, aging = kind
    prompts = np.array(prompts[: len(lengths)])
    patience = None if bound is None else Patience(remaining(lengths), bound)
    served = run(
        arrival,
        lengths,
        keys,
        server,
        prompts=prompts,
        keeps_slot_after=np.array(hold),
        aging=aging,
        patience=patience,
    )
    assert not np.isnan(served.finish).any() and not np.isnan(served.first_token).any()
    own = np.array(lengths) * server.step_time(1) + prompts * server.prefill_seconds
    assert (served.latency >= own - 1e-9).all() and (served.first_token > served.arrival).all()
    assert served.slot_steps >= sum(lengths) and served.read >= prompts.sum()
    if not served.preemptions:
        assert served.read == prompts.sum()
    # Work conserving: it pauses only where all that came have been served.
    last = np.maximum.accumulate(served.finish)[:-1]
    assert served.makespan - served.busy == pytest.approx(
        np.maximum(0.0, served.arrival[1:] - last).sum()
    )


def test_srpt_is_best_on_one_server_where_preemption_is_free():
    rng = np.random.default_rng(3)
    for _ in range(20):
        lengths = rng.integers(1, 20, 40)
        arrival = arrivals(lengths, load=0.9, capacity=1.0, rng=rng, burstiness=0.5)
        best = run(arrival, lengths, remaining(lengths), Server(slots=1), keeps_slot_after=np.inf)
        for keys, hold in (
            (constant(arrival, lengths), 0.0),
            (constant(lengths, lengths), np.inf),
            ([rng.random(n) for n in lengths], np.inf),
        ):
            other = run(arrival, lengths, keys, Server(slots=1), keeps_slot_after=hold)
            assert best.latency.mean() <= other.latency.mean() + 1e-9


def test_arrivals_ask_for_the_given_share_of_the_capacity():
    lengths = np.random.default_rng(1).integers(1, 100, 20_000)
    for burstiness in (1.0, 0.25):
        rng = np.random.default_rng(2)
        arrival = arrivals(lengths, load=0.7, capacity=400.0, rng=rng, burstiness=burstiness)
        assert lengths.sum() / arrival[-1] / 400.0 == pytest.approx(0.7, rel=0.03)
        gaps = np.diff(arrival)
        assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_impossible_servers_are_refused():
    for wrong, reason in (
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"step_seconds": 0.0}, "takes no time"),
        ({"memory": 0}, "memory must be at least 1 token, got 0"),
        ({"prefill_tokens": 0}, "prefill_tokens must be"),
        ({"prefill_seconds": -1.0}, "prefill_seconds must be"),
    ):
        with pytest.raises(ValueError, match=reason):
            Server(**wrong)
    for wrong in ({"load": 0.0}, {"load": 1.0, "burstiness": 0.0}):
        with pytest.raises(ValueError, match="must be positive"):
            arrivals(np.array([1]), capacity=1.0, rng=np.random.default_rng(0), **wrong)
