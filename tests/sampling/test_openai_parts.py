"""The turns of servers, and requests cut out of what is missing."""

import asyncio
from types import SimpleNamespace

import openai
import pytest

from lenvm_rl.sampling.server import servers as server_pool
from lenvm_rl.sampling.server.engine import ServerSettings, together
from lenvm_rl.sampling.server.servers import Server, ServerPool, base_of


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class FakeClient:
    """Lists its models where `answers` says so; counts how often it is asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, 0
        self.models = self

    def with_options(self, **options):
        return self

    async def list(self):
        self.asked += 1
        if not self.answers(self.asked):
            raise openai.APIConnectionError(request=None)
        return SimpleNamespace(data=[])


def pool_of(count, answers=lambda asked: True, patience=60.0):
    clock = Clock()
    servers = [Server(base=f"http://s{i}/v1", client=FakeClient(answers)) for i in range(count)]
    return ServerPool(servers, patience=patience, clock=clock), clock


def test_servers_take_turns_and_the_least_loaded_goes_first():
    pool, _ = pool_of(3)

    async def names(count):
        return [(await pool.acquire()).base[7:9] for _ in range(count)]

    assert asyncio.run(names(6)) == ["s0", "s1", "s2", "s0", "s1", "s2"]
    pool.release(pool.servers[1])
    assert asyncio.run(names(2)) == ["s1", "s0"]


def test_a_server_that_is_down_is_asked_for_its_models_until_it_is_back():
    pool, clock = pool_of(2, lambda asked: asked == 3)
    first, second = pool.servers
    pool.down(first)
    pool.down(first)
    assert first.strikes == 1, "of many requests that find it down, one counts"

    async def turn():
        server = await pool.acquire()
        pool.release(server)
        return server

    assert [asyncio.run(turn()) for _ in range(3)] == [second] * 3 and not first.client.asked
    for strikes in (2, 3):
        clock.now += 100
        assert asyncio.run(turn()) is second and first.strikes == strikes
    clock.now += 100
    assert asyncio.run(turn()) is first and not first.strikes
    assert first.client.asked == 3


def test_pauses_of_a_server_that_is_down_double_up_to_the_longest():
    pool, _ = pool_of(1)
    [server] = pool.servers
    first, longest = server_pool._PAUSES
    for pause in (first, 2 * first, 4 * first, 8 * first):
        pool._strike(server)
        assert server.not_before == pause
    server.strikes = 10**6
    pool._strike(server)
    assert server.not_before == longest


def test_patience_ends_when_no_server_has_been_reachable(monkeypatch):
    monkeypatch.setattr(server_pool, "_PAUSES", (1000.0, 1000.0))
    pool, clock = pool_of(2, lambda asked: False)
    for server in pool.servers:
        pool.down(server)
    clock.now = 61.0
    assert asyncio.run(pool.acquire()) is None


def test_requests_hold_samples_of_one_prompt():
    def request(name, k):
        return SimpleNamespace(task=SimpleNamespace(prompt_id=name), sample_id=k)

    missing = [request("a", k) for k in (0, 2, 3, 7, 8)] + [request("b", 0)]
    parts = [[(r.task.prompt_id, r.sample_id) for r in part] for part in together(iter(missing), 2)]
    assert parts == [[("a", 0), ("a", 2)], [("a", 3), ("a", 7)], [("a", 8)], [("b", 0)]]


def test_addresses_with_and_without_v1():
    assert base_of("http://a:1/") == base_of("http://a:1/v1") == base_of(" http://a:1 ")
    assert base_of("https://h/proxy") == "https://h/proxy/v1"


@pytest.mark.parametrize("text", ["localhost:8000", "http://", "http://b:port", "ftp://a", ""])
def test_what_is_no_address(text):
    ServerSettings(server=[" http://a:8000/v1 "])
    with pytest.raises(ValueError, match="write http://HOST"):
        ServerSettings(server=[text, "http://a"])
