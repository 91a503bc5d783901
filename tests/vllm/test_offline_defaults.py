"""What does an engine start with where nothing was said?"""

import pytest

pytest.importorskip("vllm")

import vllm
from vllm.platforms import current_platform

from lenvm_rl.vllm.offline import cpu_defaults, start_llm


def started(monkeypatch, cpu, **settings):
    """Arguments that `LLM` gets."""
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: cpu)
    monkeypatch.setattr(vllm, "LLM", lambda *args, **given: given)
    return start_llm("policy", seed=3, **settings)


def test_a_cpu_engine_leaves_memory_to_others(monkeypatch):
    given = started(monkeypatch, cpu=True)
    assert given["gpu_memory_utilization"] == 0.5 and given["enforce_eager"] and given["seed"] == 3
    assert started(monkeypatch, cpu=True, gpu_memory_utilization=0.9, enforce_eager=False) == {
        "gpu_memory_utilization": 0.9,
        "enforce_eager": False,
        "seed": 3,
    }


def test_other_devices_keep_vllms_own_defaults(monkeypatch):
    assert started(monkeypatch, cpu=False) == {"seed": 3}
    assert cpu_defaults() == {}
