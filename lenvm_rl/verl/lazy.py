"""How does code run when verl imports a module, without importing that module now?

verl loads plugins in every process. Registering a trainer needs `verl.trainer.ppo.v1`, which
takes seconds to import and is wanted in one process only; so it waits for verl's own import.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder

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
