"""The arrows between packages (a pure core, thin edges) hold in every file."""

import ast
import sys
from pathlib import Path

import pytest

from scripts.bench.house import circles, imports

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lenvm_rl"

# part of the package -> the parts it may import (itself always)
ARROWS = {
    "core": set(),
    "rollouts": {"core"},
    "prompts": {"core", "rollouts"},
    "model": {"core", "rollouts"},
    "guidance": {"core", "model", "rollouts"},
    "sampling": {"core", "guidance", "model", "prompts", "rollouts"},
    "pages": {"core", "model", "rollouts"},
    "evals": {"core", "guidance", "model", "pages", "prompts", "rollouts", "sampling"},
    "demo": {"core", "evals", "guidance", "model", "prompts", "rollouts", "sampling"},
    "verl": {"core", "guidance", "model", "rollouts", "sampling"},
    "vllm": {"core", "guidance", "model", "rollouts", "sampling"},
    "serving": {"core", "model", "rollouts", "sampling"},
    "cli": {
        *("core", "demo", "evals", "guidance", "model", "pages", "prompts", "rollouts"),
        *("sampling", "serving", "verl", "vllm"),
    },
}
# third-party packages that change fast -> the only parts that import them
EDGES = {
    "transformers": {"guidance", "model", "sampling", "verl", "vllm"},
    "tokenizers": {"model"},
    "verl": {"verl"},
    "ray": {"verl", "vllm"},
    "hydra": {"verl"},
    "omegaconf": {"verl"},
    "tensordict": {"verl"},
    "transfer_queue": {"verl"},
    "vllm": {"vllm"},
    "openai": {"sampling"},
    **dict.fromkeys(("aiohttp", "fastapi", "prometheus_client", "starlette"), {"serving"}),
    "tyro": {"cli"},
}
MAY_USE_REWARD_FNS = {"demo", "verl", "cli"}
CORE_MAY_IMPORT = {"torch", "lenvm_rl", *sys.stdlib_module_names}


def files():
    return sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_modules(file: Path):
    """Absolute names of all imports in a file, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; absolute ones keep edges readable"
            yield node.module


def imported_names(file: Path):
    """Like `imported_modules`, with the names taken: `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_part_is_known():
    parts = {part_of(file) for file in files()} - {"__init__"}
    assert parts <= set(ARROWS), f"new parts without arrows: {parts - set(ARROWS)}"


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(file):
    part = part_of(file)
    for module in imported_modules(file):
        top, *rest = module.split(".")
        if top == "lenvm_rl" and rest:
            allowed = ARROWS.get(part, set()) | {part}
            assert rest[0] in allowed, f"{part} may not import lenvm_rl.{rest[0]}"
        elif top in EDGES:
            assert part in EDGES[top], f"only {sorted(EDGES[top])} may import {top}"
        if top == "reward_fns":
            assert part in MAY_USE_REWARD_FNS, f"{part} may not import reward_fns"
        if part in ("core", "__init__"):
            assert top in CORE_MAY_IMPORT, f"the core needs torch alone, but imports {top}"


# reward functions are plain Python: of the package they may use the core
REWARD_FNS_MAY_IMPORT = ("lenvm_rl.core",)


def test_reward_functions_import_no_engine():
    found = sorted((ROOT / "reward_fns").rglob("*.py"))
    assert found, "no reward functions: has the folder moved?"
    for file in found:
        for module in imported_names(file):
            top = module.split(".")[0]
            allowed = top in {"reward_fns", *sys.stdlib_module_names}
            allowed |= module.startswith(REWARD_FNS_MAY_IMPORT)
            allowed |= top in {"math_verify", "sympy"} and file.name == "math_worker.py"
            assert allowed, f"{file} may not import {module}"


def test_no_modules_import_one_another_in_a_circle():
    """Inside packages too, imports inside functions and for type checkers included."""
    modules = [*files(), *(ROOT / "reward_fns").rglob("*.py")]
    found = imports(ROOT, [file.relative_to(ROOT) for file in modules], types=True)
    assert len(found) > 150
    assert circles(found) == []
