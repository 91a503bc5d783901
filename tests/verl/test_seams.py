"""Is every place known where verl is extended, and is a changed one named?"""

import importlib
import inspect
import logging
import pkgutil

import pytest
import verl

import lenvm_rl.verl
from lenvm_rl.verl import plugin, seams


def test_the_installed_verl_has_every_seam_and_nothing_new():
    assert seams.differences() == ([], [])


def overridden():
    """verl's functions that a method of this package overrides, by qualified name."""
    for info in pkgutil.walk_packages(lenvm_rl.verl.__path__, "lenvm_rl.verl."):
        module = importlib.import_module(info.name)
        for _, ours in inspect.getmembers(module, inspect.isclass):
            if ours.__module__ == module.__name__:
                for base in ours.__mro__:  # what is mixed in overrides where it is mixed in
                    if base.__module__.startswith("lenvm_rl."):
                        for function in filter(inspect.isfunction, vars(base).values()):
                            yield from _nearest(ours, function.__name__)


def _nearest(ours, name):
    for theirs in ours.__mro__[1:]:
        if theirs.__module__.startswith("verl.") and inspect.isfunction(vars(theirs).get(name)):
            # A platform is an abstract class: Python itself names what one of its methods lacks.
            if theirs.__name__ != "PlatformBase":
                yield vars(theirs)[name]
            return


def seam_functions():
    for module, functions in seams.SEAMS.items():
        for name in functions:
            function = importlib.import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
            yield function


def test_every_overridden_method_is_a_seam():
    found = {function.__qualname__: function for function in overridden()}
    assert "PPOTrainer._compute_advantage" in found and "FSDPEngine._build_module" in found
    known = list(seam_functions())
    assert [name for name, function in found.items() if function not in known] == []


def test_a_method_that_is_gone_and_one_that_asks_for_more_are_named(monkeypatch):
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    monkeypatch.setattr(PPOTrainer, "_validate", lambda self, loader: {})
    monkeypatch.delattr(PPOTrainer, "on_step_end")
    with pytest.raises(RuntimeError) as error:
        plugin.check_registered()
    said = str(error.value)
    assert "has no PPOTrainer.on_step_end" in said and "PPOTrainer._validate needs loader" in said
    assert "0.9.1" in said


def test_a_parameter_that_is_gone_is_named(monkeypatch):
    from verl.utils import seqlen_balancing

    monkeypatch.setattr(seqlen_balancing, "get_seqlen_balanced_partitions", lambda seqlen_list: [])
    broken, _ = seams.differences()
    assert broken == [
        f"verl.utils.seqlen_balancing.get_seqlen_balanced_partitions takes no {name}"
        for name in ("k_partitions", "equal_size")
    ]


def test_an_unknown_version_is_a_warning_with_what_is_new(monkeypatch, caplog):
    from verl.utils import seqlen_balancing

    monkeypatch.setattr(verl, "__version__", "0.9.7")
    monkeypatch.setattr(seqlen_balancing, "calculate_workload", lambda seqlen_list, fast=True: None)
    with caplog.at_level(logging.WARNING):
        plugin.check_registered()
    assert "not with 0.9.7" in caplog.text and "calculate_workload takes fast" in caplog.text


def test_a_tested_version_says_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        plugin.check_registered()
    assert not caplog.records
