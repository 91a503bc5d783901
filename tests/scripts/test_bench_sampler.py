"""The bench of the sampler: both stores of keys and values are timed on the same step."""

import time

import torch

from scripts.bench.sampler import attention_of_a_step


def test_a_step_is_timed_by_both_stores():
    lengths = torch.tensor([3, 40, 17])
    timed = attention_of_a_step(lengths, 2, 1, time.perf_counter, steps=1)
    assert set(timed) == {"slots", "store"} and min(timed.values()) > 0
