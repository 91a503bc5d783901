"""Does verl find the package, and does a broken installation say so aloud?"""

import os
import subprocess
import sys
import textwrap

import pytest

from lenvm_rl.verl import plugin


def in_fresh_process(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env={**os.environ, "VERL_PLATFORM": "cpu", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_check_passes_where_the_package_is_installed():
    plugin.check_registered()


def test_registrations_are_known_to_verl():
    from verl.plugin.platform import get_platform
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    from lenvm_rl.verl import engine
    from lenvm_rl.verl.cpu import platform as cpu
    from lenvm_rl.verl.cpu import replica

    assert isinstance(get_platform(), cpu.CPUPlatform)
    found = EngineRegistry.get_engine_cls(engine.MODEL_TYPE, "fsdp2")
    assert found is engine.CPULengthValueEngine
    assert EngineRegistry.get_engine_cls("value_model", "fsdp2") is engine.CPUValueEngine
    assert RolloutReplicaRegistry.get(plugin.ROLLOUT_NAME) is replica.TransformersReplica


def test_verls_own_engines_stay_on_accelerators(monkeypatch):
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithValueHead

    from lenvm_rl.verl import engine

    monkeypatch.setenv("VERL_ENGINE_DEVICE", "cuda")
    assert EngineRegistry.get_engine_cls("value_model", "fsdp") is FSDPEngineWithValueHead
    for strategy in ("fsdp", "fsdp2"):
        found = EngineRegistry.get_engine_cls(engine.MODEL_TYPE, strategy)
        assert found is engine.LengthValueEngine


@pytest.mark.slow
def test_verl_loads_the_entry_point_and_not_the_trainer():
    done = in_fresh_process(
        """
        import sys
        import verl
        from lenvm_rl.verl import plugin
        assert plugin._registered
        heavy = "lenvm_rl.verl.pretrain.trainer"
        assert heavy not in sys.modules, "heavy imports belong to the task runner"
        from verl.trainer.ppo.v1 import get_trainer_cls
        print(get_trainer_cls("lenvm_pretrain").__name__)
        """
    )
    assert done.stdout.strip().endswith("LengthValuePretrainer"), done.stderr


@pytest.mark.slow
def test_a_failing_plugin_is_an_error_line_although_verl_hides_it():
    done = in_fresh_process(
        """
        import sys
        sys.modules["lenvm_rl.verl.cpu.platform"] = None  # as where verl lacks what it imports
        import verl
        """
    )
    assert "lenvm_rl could not register with verl: verl 0." in done.stderr
    assert plugin.INSTALL in done.stderr


def test_a_missing_verl_is_refused_with_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "verl", None)
    with pytest.raises(ImportError, match=r"verl cannot be imported.*pip install"):
        plugin.check_registered()


def test_a_missing_entry_point_is_refused(monkeypatch):
    monkeypatch.setattr(plugin, "entry_points", lambda group: [])
    with pytest.raises(RuntimeError, match="entry point lenvm_rl .* is not installed"):
        plugin.check_registered()


@pytest.mark.parametrize("policy", ["none", "other"])
def test_plugins_that_are_switched_off_are_refused(monkeypatch, policy):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", policy)
    with pytest.raises(RuntimeError, match=f"VERL_USE_EXTERNAL_PLUGINS='{policy}'"):
        plugin.check_registered()


def test_a_list_of_plugins_that_has_this_one_passes(monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "other, lenvm_rl")
    plugin.check_registered()
