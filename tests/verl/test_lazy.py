"""Do callbacks run right after the import they wait for, once, and with their errors?"""

import importlib
import sys

import pytest

from lenvm_rl.verl.plugin import after_import


@pytest.fixture
def module(tmp_path, monkeypatch):
    """An importable module that records when it is executed."""
    (tmp_path / "waited_for.py").write_text("import builtins\nready = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "waited_for"
    sys.modules.pop("waited_for", None)


def test_the_callback_waits_for_the_import_and_sees_the_whole_module(module):
    seen = []
    after_import(module, lambda: seen.append(sys.modules[module].ready))
    assert seen == [] and module not in sys.modules
    importlib.import_module(module)
    assert seen == [True]
    importlib.reload(sys.modules[module])
    assert seen == [True]


def test_callbacks_run_in_the_order_they_were_given(module):
    order = []
    after_import(module, lambda: order.append(1))
    after_import(module, lambda: order.append(2))
    importlib.import_module(module)
    assert order == [1, 2]


def test_an_imported_module_is_not_waited_for(module):
    importlib.import_module(module)
    seen = []
    after_import(module, lambda: seen.append(1))
    assert seen == [1]


def test_an_error_of_the_callback_reaches_whoever_imports(module):
    def fail():
        raise ImportError("registration failed")

    after_import(module, fail)
    with pytest.raises(ImportError, match="registration failed"):
        importlib.import_module(module)


def test_a_module_that_does_not_exist_stays_missing():
    after_import("lenvm_no_such_module", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lenvm_no_such_module")
