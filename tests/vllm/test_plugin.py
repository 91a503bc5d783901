"""Registration with vLLM, and that its failure harms nothing else."""

import sys
from importlib.metadata import entry_points

from lenvm_rl.vllm import plugin


def test_vllm_knows_the_architecture(vllm):
    plugin.register()
    plugin.register()  # vLLM loads plugins in every process, some of them twice
    assert plugin.ARCHITECTURE in vllm.ModelRegistry.get_supported_archs()


def test_the_plugin_is_installed_and_the_processor_is_not_an_entry_point():
    installed = {point.value for point in entry_points(group="vllm.general_plugins")}
    assert "lenvm_rl.vllm.plugin:register" in installed
    processors = entry_points(group="vllm.logits_processors")
    assert not [point for point in processors if point.value.startswith("lenvm_rl")]


def test_a_failure_is_an_error_in_the_log_and_no_more(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it raises ImportError
    with caplog.at_level("ERROR", logger="vllm.lenvm_rl"):
        plugin.register()
    assert "could not register its pooling model" in caplog.text
