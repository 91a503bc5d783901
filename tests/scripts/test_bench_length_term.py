"""The bench of the length term: its reference is another computation, its trainer has no tokens."""

import pytest
import torch

from lenvm_rl.core import length_advantage
from scripts.bench import length_term as bench


def test_the_recursion_by_hand():
    values = torch.tensor([[-0.5, -0.25, 9.0]])
    got = bench.by_columns(values, torch.tensor([-0.1]), torch.tensor([2]), 0.9, 0.5)
    last = 0.9 * -0.1 + 0.25 - 0.1
    first = 0.9 * -0.25 + 0.5 - 0.1 + 0.45 * last
    assert got[0].tolist() == pytest.approx([first, last, 0.0])


def test_agreement_is_that_of_the_term(monkeypatch):
    assert 0 < bench.agreement(60, 0) < 1e-6
    monkeypatch.setattr(bench, "length_advantage", lambda *a, **k: 1.01 * length_advantage(*a, **k))
    assert bench.agreement(60, 0) > 1e-4


def test_a_small_size_is_measured():
    found = bench.measure(128, 200, 4, 0)
    assert 0 < found["trainer_seconds"] < 5 and found["worker_gigabytes"] >= 0
    assert 128 < found["tokens"] < 128 * 200


def test_the_trainers_part_gives_its_metrics():
    found = bench.trainer_part(torch.tensor([30, 60] * 16), 3)
    assert found["length/mean"] == 45 and found["lenvm/rank_1_of_k"] == 0.5


def test_half_a_size_is_refused():
    with pytest.raises(ValueError, match="--rows and --width belong together"):
        bench.Options(rows=5)
