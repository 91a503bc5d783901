"""The arithmetic of the two vLLM benchmarks; the benchmarks themselves start engines."""

import os
import subprocess
import sys

import pytest

from lenvm_rl.demo import policy_path
from lenvm_rl.model import LengthValueModel, load_tokenizer
from scripts.bench import endurance as bench_endurance
from scripts.bench import exactness as bench_exactness


def test_growth_is_the_slope_of_the_last_two_thirds():
    warming = [(float(t), 500.0 + 100 * t) for t in range(10)]
    steady = [(float(t), 1500.0 + 0.05 * t) for t in range(10, 30)]  # 3 MiB per minute
    assert bench_endurance.growth_per_minute(warming + steady) == pytest.approx(3.0, abs=0.01)
    assert bench_endurance.growth_per_minute(warming[:2]) == 0.0


def test_memory_is_that_of_a_process_and_all_below_it():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = bench_endurance.resident_mib(os.getpid())
        assert found["server"] > 50 and len(found) > 1
        assert child.stdin is not None
        child.communicate(b"\n")
    assert bench_endurance.resident_mib(child.pid) == {}


def test_a_wrong_length_is_a_failure():
    load = bench_endurance.Load("http://127.0.0.1:1", "m", [[5]], seed=0)
    load._check_length({"lenvm_mode": "at_most", "lenvm_target": 9}, 10)  # nine and EOS
    load._check_length({"lenvm_mode": "at_least", "lenvm_target": 9}, 9)
    load._check_length({}, 160)
    assert not load.failures
    load._check_length({"lenvm_mode": "at_most", "lenvm_target": 9}, 11)
    load._check_length({"lenvm_mode": "at_least", "lenvm_target": 9}, 8)
    assert len(load.failures) == 2


def test_the_tight_cache_holds_one_request_but_not_the_load():
    per_token = 2 * 4 * 4 * 4 * 32  # keys and values, bytes, layers, heads, head size
    assert 640 * per_token < bench_exactness.tight_cache(str(policy_path())) < 24 * 168 * per_token


def test_the_random_lenvm_fits_the_policy(tmp_path):
    tokenizer = load_tokenizer(policy_path())
    path = bench_exactness.random_lenvm(str(policy_path()), tokenizer, tmp_path / "lenvm")
    assert LengthValueModel.from_pretrained(path, tokenizer=tokenizer).config.gamma == 0.99
