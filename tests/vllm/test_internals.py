"""Weights of vLLM's CPU build stay replaceable when asked, and only then."""

import types

import pytest
import torch

from lenvm_rl.vllm import internals


@pytest.fixture
def layers(vllm, monkeypatch):
    import vllm.model_executor.layers.utils as module

    monkeypatch.setattr(
        module, "dispatch_cpu_unquantized_gemm", module.dispatch_cpu_unquantized_gemm
    )
    return module


def test_without_the_switch_vllm_is_left_alone(layers, monkeypatch):
    before = layers.dispatch_cpu_unquantized_gemm
    for value in (None, "0"):
        monkeypatch.delenv(internals.SWITCH, raising=False)
        if value is not None:
            monkeypatch.setenv(internals.SWITCH, value)
        assert not internals.keep_plain_weights()
    assert layers.dispatch_cpu_unquantized_gemm is before


def test_other_platforms_are_left_alone(layers, monkeypatch):
    from vllm import platforms

    monkeypatch.setenv(internals.SWITCH, "1")
    monkeypatch.setattr(platforms, "current_platform", types.SimpleNamespace(is_cpu=lambda: False))
    before = layers.dispatch_cpu_unquantized_gemm
    assert not internals.keep_plain_weights()
    assert layers.dispatch_cpu_unquantized_gemm is before


def test_layers_keep_their_weights_and_multiply_with_them(layers, monkeypatch):
    monkeypatch.setenv(internals.SWITCH, "1")
    assert internals.keep_plain_weights()
    layer = torch.nn.Linear(3, 2)
    layers.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    x = torch.ones(1, 3)
    with torch.no_grad():
        layer.weight.fill_(2.0)  # what a training step does
    torch.testing.assert_close(
        layer.cpu_linear(x, layer.weight, None), torch.full((1, 2), 6.0), atol=0, rtol=0
    )


def test_a_vllm_without_that_function_says_so(layers, monkeypatch):
    monkeypatch.setenv(internals.SWITCH, "1")
    monkeypatch.delattr(layers, "dispatch_cpu_unquantized_gemm")
    with pytest.raises(AttributeError, match="dispatch_cpu_unquantized_gemm"):
        internals.keep_plain_weights()
