"""The public surface of the core: complete, documented, and importable with torch alone."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import lenvm_rl.core as core

MODULES = [
    importlib.import_module(f"lenvm_rl.core.{info.name}")
    for info in pkgutil.iter_modules(core.__path__)
]


def test_all_is_sorted_and_complete():
    assert list(core.__all__) == sorted(core.__all__, key=lambda n: (not n.isupper(), n))
    assert len(set(core.__all__)) == len(core.__all__)
    for name in core.__all__:
        assert hasattr(core, name)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rsplit(".", 1)[-1])
def test_every_public_function_is_documented(module):
    assert module.__doc__
    for name, member in vars(module).items():
        defined_here = getattr(member, "__module__", None) == module.__name__
        if defined_here and not name.startswith("_"):
            assert inspect.getdoc(member), f"{module.__name__}.{name} has no docstring"


def test_core_loads_torch_alone():
    """No edge package comes along, so that a bare install can use the mathematics."""
    edges = ["numpy.testing", "transformers", "verl", "ray", "pyarrow", "scipy", "vllm", "hydra"]
    code = (
        "import sys, torch; before = set(sys.modules); import lenvm_rl.core; "
        "added = {m.split('.')[0] for m in set(sys.modules) - before}; "
        f"print(sorted(added & set({edges!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
