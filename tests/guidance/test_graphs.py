"""Is a step captured once per bucket, and is a failed capture without consequences?

CUDA is played by stand-ins that keep account: a graph replays by running what was captured.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from lenvm_rl.guidance import History
from lenvm_rl.guidance.exact import fixed_step
from lenvm_rl.guidance.exact.fixed_step import buckets_of
from tests.guidance.test_exact import K, draw, everything, make_lenvm, make_scorer, prompt


class FakeCuda:
    """Streams, captures and replays of `torch.cuda`, on a CPU.

    Args:
        fails: whether the n-th capture (from 0) fails, and where: "begin", "body" or "end".
    """

    def __init__(self, fails=lambda n: None):
        self.fails, self.current, self.modes, self.replays = fails, "engine", [], 0

    def graph(self, graph, *, pool, capture_error_mode):
        """As torch's: the capture stream stays current where beginning or ending fails."""
        fails = self.fails(len(self.modes))
        self.modes.append(capture_error_mode)

        @contextmanager
        def capture():
            before, self.current = self.current, "capture"
            if fails == "begin":
                raise RuntimeError("capture cannot begin")
            try:
                yield
            finally:
                if fails == "end":
                    raise RuntimeError("capture cannot end")
                self.current = before

        return capture()

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def patch(self, monkeypatch):
        side = SimpleNamespace(wait_stream=lambda other: None)
        engine = SimpleNamespace(wait_stream=lambda other: None, name="engine")
        for name, stand_in in {
            "graph": self.graph,
            "stream": self.stream,
            "Stream": lambda device: side,
            "current_stream": lambda device=None: engine,
            "set_stream": lambda stream: setattr(self, "current", stream.name),
            "graph_pool_handle": lambda: object(),
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def replay(self):
        self.replays += 1


@pytest.fixture
def capturing(monkeypatch):
    """A scorer whose steps are captured by a `FakeCuda`."""

    def make(fails=lambda n: None, **settings):
        scorer = make_scorer(make_lenvm(), fixed_shapes=True, **settings)
        scorer._fixed._captures = True
        cuda = FakeCuda(fails)
        cuda.patch(monkeypatch)
        return scorer, cuda

    return make


def step_of(scorer, rows=3, seed=0):
    """Logits of one step of rows that were never seen, and what an uncaptured scorer says."""
    histories = [History(prompt(n, n + seed), []) for n in range(5, 5 + rows)]
    candidates = draw(rows, seed)
    found = []
    for each in (scorer, make_scorer(make_lenvm(), fixed_shapes=True, slots=8)):
        slots = [each.open(history) for history in histories]
        found.append(each.score(slots, histories, candidates, everything(candidates)))
        for slot in slots:
            each.close(slot)
    return found


def test_a_bucket_is_captured_once_and_replayed(capturing):
    scorer, cuda = capturing()
    for seed in range(3):
        step_of(scorer, seed=seed)
    assert cuda.modes == ["thread_local"] and cuda.replays == 3
    assert cuda.current == "engine" and scorer._fixed.graphs == 1


@pytest.mark.parametrize("where", ["begin", "end"])
def test_a_failed_capture_leaves_the_stream_and_the_values_as_they_are(capturing, caplog, where):
    scorer, cuda = capturing(lambda n: where)
    for seed in range(3):
        found, expected = step_of(scorer, rows=3 + seed % 2, seed=seed)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert cuda.current == "engine"
    assert len(cuda.modes) == 1, "a failure is the last capture that is tried"
    assert cuda.replays == scorer._fixed.graphs == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"capture cannot {where}" in caplog.text


def test_a_step_that_fails_while_it_is_captured(capturing, monkeypatch, caplog):
    scorer, cuda = capturing()
    inner = scorer._fixed._score

    def score(*args):
        if cuda.current == "capture":
            raise torch.OutOfMemoryError("out of memory")
        return inner(*args)

    monkeypatch.setattr(scorer._fixed, "_score", score)
    found, expected = step_of(scorer)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert cuda.current == "engine" and "out of memory" in caplog.text


def test_graphs_before_one_that_fails_go_on_being_replayed(capturing):
    scorer, cuda = capturing(lambda n: "end" if n == 1 else None)
    for rows in (2, 4, 2):
        step_of(scorer, rows=rows, seed=rows)
    assert (len(cuda.modes), cuda.replays, scorer._fixed.graphs) == (2, 2, 1)


def test_graphs_are_prepared_before_they_are_needed(capturing):
    scorer, cuda = capturing(slots=8)
    expected = buckets_of(K, **scorer._fixed._limits)
    assert scorer.prepare(K) == len(cuda.modes) == len(expected) >= 4
    step_of(scorer, rows=4)
    assert len(cuda.modes) == len(expected) and cuda.replays == 1


def test_there_are_not_more_graphs_than_are_bounded(capturing, monkeypatch):
    monkeypatch.setattr(fixed_step, "MAX_GRAPHS", 2)
    scorer, cuda = capturing(slots=8)
    assert scorer.prepare(K) == 2
    found, expected = step_of(scorer, rows=8)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(cuda.modes) == 2


def test_elsewhere_nothing_is_captured():
    assert make_scorer(make_lenvm(), fixed_shapes=True).prepare(K) == 0
    assert make_scorer(make_lenvm(), fixed_shapes=False).prepare(K) == 0
