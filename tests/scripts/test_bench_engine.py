"""The engine's benchmark: what it refuses, rates by hand, and (slow) a run on the demo policy."""

import json

import pytest

from lenvm_rl.rollouts import Rollout
from lenvm_rl.sampling.run import Failure, Task
from scripts.bench import engine
from scripts.bench.harness import Failed, main


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"streams": (4, 0)}, "--streams must be at least 1"),
        ({"max_tokens": 0}, "--max-tokens must be at least 1"),
        ({"modes": ("off",)}, "guides nothing"),
        ({"modes": ("sideways",)}, "mode"),
    ],
)
def test_options_that_time_nothing_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        engine.Options(**fields)


def test_every_mode_has_its_number():
    options = engine.Options(target=40, top_k=7)
    guides = [options.guidance(mode) for mode in options.modes]
    assert [g.changes_nothing for g in guides] == [True] + 5 * [False]
    assert [g.target for g in guides[3:]] == [40, 40, 40] and {g.top_k for g in guides} == {7}


def test_rates_by_hand(monkeypatch):
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(engine.time, "monotonic", lambda: next(clock))
    spent = iter([1.0, 4.0])
    monkeypatch.setattr(engine, "_processor_seconds", lambda: next(spent))
    rows = [
        Rollout(
            prompt_id="a", sample_id=i, prompt_ids=[1], response_ids=[5] * n, finish_reason="stop"
        )
        for i, n in enumerate((200, 100))
    ]
    assert engine.timed(lambda: rows) == {
        "requests": 2,
        "mean_tokens": 150.0,
        "seconds": 2.0,
        "requests_per_s": 1.0,
        "tokens_per_s": 150.0,
        "cpu_s_per_1000_tokens": 10.0,
    }
    monkeypatch.undo()
    task = Task(prompt_id="a", prompt_ids=[1], n=1, max_tokens=1)
    failure = Failure(task=task, sample_ids=[0], kind="refused by vLLM", detail="too long")
    with pytest.raises(Failed, match="prompt 'a': refused by vLLM: too long"):
        engine.timed(lambda: [failure])


@pytest.mark.slow
def test_an_engine_alone_and_one_that_is_guided(tmp_path):
    words = ["engine", "--streams", "1", "2", "--requests", "2", "--max-tokens", "24"]
    words += ["--modes", "off", "at_most", "--target", "8", "--json", str(tmp_path / "engine.json")]
    assert main(words) == 0
    figures = json.loads((tmp_path / "engine.json").read_text())
    assert [(r["engine"], r["mode"], r["streams"], r["requests"]) for r in figures["rows"]] == [
        ("none", "-", 1, 2),
        ("none", "-", 2, 4),
        ("exact", "off", 1, 2),
        ("exact", "at_most", 1, 2),
        ("exact", "off", 2, 4),
        ("exact", "at_most", 2, 4),
    ]
    assert [row["times"] for row in figures["rows"][:2]] == [1, 1]
    assert all(row["mean_tokens"] <= 9 for row in figures["rows"] if row["mode"] == "at_most")
