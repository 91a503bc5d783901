"""Registration with verl, and the proof that it worked.

verl loads the entry point `verl.plugins` in every process, and hides a plugin that fails to load
(a DEBUG line). So failures are logged as errors here, and `check_registered()` turns a silent
absence into a sentence; both trainers call it first.

verl resolves entry points without calling them: importing this module registers.

Registering a trainer needs `verl.trainer.ppo.v1`, which takes seconds to import and is wanted in
one process only; so it waits for verl's own import of it (`after_import`).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.metadata import entry_points

from lenvm_rl.verl import seams

_waiting: dict[str, list[Callable[[], None]]] = {}


class _AfterImport(MetaPathFinder):
    """Finds a waited-for module as Python would, and runs the callbacks once it has executed."""

    def find_spec(self, name, path=None, target=None):
        callbacks = _waiting.pop(name, None)  # popped first: the search below comes back here
        if callbacks is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            for callback in callbacks:
                callback()

        spec.loader.exec_module = exec_module
        return spec


def after_import(name: str, callback: Callable[[], None]) -> None:
    """Call `callback()` right after module `name` is imported; at once if it already is.

    An exception of the callback propagates to whoever imported `name`, so a broken registration is
    an error at the place that needs it.
    """
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        callback()
        return
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
    _waiting.setdefault(name, []).append(callback)


logger = logging.getLogger(__name__)

INSTALL = 'pip install ".[verl]" in a clone of lenvm-rl'
TRAINER_MODE = "lenvm_pretrain"
POLICY_TRAINER_MODES = ("lenvm", "lenvm_colocate_async", "lenvm_separate_async")
REWARD_MANAGER = "lenvm_length"
RESPONSE_TOKENS = "response_tokens"
ROLLOUT_NAME = "transformers"

# Once verl has imported the module on the left, those on the right register themselves with it.
_REGISTERED_BY_IMPORT = {
    "verl.utils.model": ("lenvm_rl.model",),
    "verl.utils.flops_counter": ("lenvm_rl.verl.flops",),
    "verl.workers.engine": ("lenvm_rl.verl.engine",),
    "verl.workers.rollout.base": ("lenvm_rl.verl.cpu.weights",),
    "verl.workers.rollout.replica": ("lenvm_rl.verl.cpu.replica",),
    "verl.experimental.reward_loop.reward_manager": ("lenvm_rl.verl.rl.reward_manager",),
    "verl.experimental.agent_loop": ("lenvm_rl.verl.rl.agent_loop",),
    "verl.trainer.ppo.v1": ("lenvm_rl.verl.pretrain.trainer", "lenvm_rl.verl.rl.policy_trainer"),
}

_registered = False


def register() -> None:
    """Register the CPU platform, engines, rollout replica and trainers; once per process.

    Raises:
        ImportError: verl (or what it needs) is missing, or too old to be extended.
    """
    global _registered
    if _registered:
        return
    version = _verl_version()
    try:
        from lenvm_rl.verl.cpu import platform as cpu
    except ImportError as error:
        raise ImportError(
            f"verl {version} lacks what lenvm_rl extends ({error}). Install one that it was "
            f"tested with, {' or '.join(seams.TESTED)}: {INSTALL}"
        ) from error
    cpu.register()
    for needed, ours in _REGISTERED_BY_IMPORT.items():
        for module in ours:
            after_import(needed, _import(module))
    _registered = True
    modes = ", ".join((TRAINER_MODE, *POLICY_TRAINER_MODES))
    logger.info("lenvm_rl registered with verl %s: trainer modes %s", version, modes)


def check_registered() -> None:
    """Raise unless verl can see this package's trainer modes.

    Raises:
        ImportError: verl is missing, or too old.
        RuntimeError: this verl differs where it is extended (`seams`), the package is not
            installed with its entry point, or plugins are switched off.
    """
    version = _verl_version()
    if not _registered:
        register()
    seams.check_seams(version)
    names = [point.value for point in entry_points(group="verl.plugins")]
    if not any(value.startswith("lenvm_rl.verl.plugin") for value in names):
        raise RuntimeError(
            "verl will not find the trainer modes of lenvm_rl: the entry point lenvm_rl of "
            f"group verl.plugins is not installed (found: {names or 'none'}). Install the package "
            f"({INSTALL}); PYTHONPATH alone is not enough."
        )
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    if policy != "auto" and "lenvm_rl" not in {name.strip() for name in policy.split(",")}:
        raise RuntimeError(
            f"VERL_USE_EXTERNAL_PLUGINS={policy!r} keeps verl from loading lenvm_rl, so the "
            "trainer modes lenvm and lenvm_pretrain would be unknown. Unset it, or add lenvm_rl to "
            "the list."
        )


def _verl_version() -> str:
    try:
        return importlib.import_module("verl").__version__
    except ImportError as error:
        raise ImportError(f"verl cannot be imported ({error}). Install it: {INSTALL}") from error


def _import(module: str) -> Callable[[], None]:
    def callback() -> None:
        importlib.import_module(module)

    return callback


try:
    register()
except ImportError as error:
    logger.error("lenvm_rl could not register with verl: %s", error)
    raise
