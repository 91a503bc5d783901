"""Waiting times, the turns of servers, and requests cut out of what is missing."""

import asyncio
import random
from types import SimpleNamespace

import httpx
import pytest

from lenvm_rl.sampling.server.connect import base_of
from lenvm_rl.sampling.server.engine import in_requests
from lenvm_rl.sampling.server.request import retry_after
from lenvm_rl.sampling.server.servers import RetryPolicy, Server, ServerPool


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("2.5", now=0) == 2.5
    assert retry_after("-3", now=0) == 0
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", now=90.0) == 10.0
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", now=200.0) == 0.0
    assert retry_after(None, now=0) is None
    assert retry_after("soon", now=0) is None


def test_delays_double_up_to_the_longest_and_are_jittered():
    random.seed(1)
    retry = RetryPolicy(first_delay=1.0, longest_delay=8.0)
    for attempt, mean in ((1, 1), (2, 2), (3, 4), (4, 8), (9, 8), (10**6, 8)):
        delays = [retry.delay(attempt) for _ in range(200)]
        assert 0.5 * mean <= min(delays) < 0.6 * mean and 1.4 * mean < max(delays) <= 1.5 * mean


@pytest.mark.parametrize("wrong", [{"retries": -1}, {"timeout": 0.0}])
def test_a_policy_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        RetryPolicy(**wrong)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def pool_of(count, handler=None, **settings):
    clock = Clock()
    transport = httpx.MockTransport(handler or (lambda request: httpx.Response(200)))
    servers = [
        Server(base=f"http://s{i}/v1", client=httpx.AsyncClient(transport=transport))
        for i in range(count)
    ]
    return ServerPool(servers, RetryPolicy(**settings), clock=clock), clock


def test_servers_take_turns_and_the_least_loaded_goes_first():
    pool, _ = pool_of(3)

    async def names(count):
        return [(await pool.acquire()).base[7:9] for _ in range(count)]

    assert asyncio.run(names(6)) == ["s0", "s1", "s2", "s0", "s1", "s2"]
    pool.release(pool.servers[1])
    assert asyncio.run(names(2)) == ["s1", "s0"]


def test_a_server_that_is_down_is_asked_for_its_models_until_it_is_back():
    probes = []

    def handler(request):
        probes.append(str(request.url))
        if len(probes) < 3:
            raise httpx.ConnectError("refused")
        return httpx.Response(200)

    pool, clock = pool_of(2, handler, first_delay=1.0)
    first, second = pool.servers
    pool.down(first)
    pool.down(first)
    assert first.strikes == 1, "of many requests that find it down, one counts"

    async def turn():
        server = await pool.acquire()
        pool.release(server)
        return server

    assert [asyncio.run(turn()) for _ in range(3)] == [second] * 3 and not probes
    for strikes in (2, 3):
        clock.now += 100
        assert asyncio.run(turn()) is second and first.strikes == strikes
    clock.now += 100
    assert asyncio.run(turn()) is first and not first.strikes
    assert probes == ["http://s0/v1/models"] * 3


def test_a_pause_is_kept_and_is_no_strike():
    pool, clock = pool_of(2)
    first, second = pool.servers
    pool.pause(first, 5.0)
    pool.pause(second, None)
    assert asyncio.run(pool.acquire()) is second
    clock.now = 4.9
    assert asyncio.run(pool.acquire()) is second
    clock.now = 5.0
    assert asyncio.run(pool.acquire()) is first and not first.strikes


def test_patience_ends_when_no_server_has_been_reachable():
    def refuse(request):
        raise httpx.ConnectError("refused")

    pool, clock = pool_of(2, refuse, patience=60.0, longest_delay=1000.0, first_delay=1000.0)
    for server in pool.servers:
        pool.down(server)
    clock.now = 61.0
    assert asyncio.run(pool.acquire()) is None


def test_requests_hold_samples_of_one_prompt():
    tasks = [SimpleNamespace(prompt_id=name) for name in "ab"]
    missing = [(tasks[0], k) for k in (0, 2, 3, 7, 8)] + [(tasks[1], 0)]
    parts = [(task.prompt_id, ids) for task, ids in in_requests(iter(missing), 2)]
    assert parts == [("a", [0, 2]), ("a", [3, 7]), ("a", [8]), ("b", [0])]


def test_addresses_with_and_without_v1():
    assert base_of("http://a:1/") == base_of("http://a:1/v1") == base_of(" http://a:1 ")
    assert base_of("https://h/proxy") == "https://h/proxy/v1"
