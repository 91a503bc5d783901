#!/usr/bin/env bash
# Prove that `import lenvm_rl` and its core need torch alone: a fresh environment without extras
# runs the core's tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"$python" -m venv "$venv"
"$venv/bin/pip" --disable-pip-version-check install -q -c constraints/cpu.txt torch==2.13.0 .
"$venv/bin/python" -I - <<'PY'
import importlib.util
import lenvm_rl, lenvm_rl.core, reward_fns, reward_fns.demo
for name in ("transformers", "pyarrow", "verl", "vllm", "ray", "numpy"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed: this proves nothing"
print(f"bare install: lenvm_rl {lenvm_rl.__version__} and its core import with torch alone")
print(f"reward_fns: {len(reward_fns.LENGTH_REWARDS)} length rewards import")
PY
"$venv/bin/pip" --disable-pip-version-check install -q -c constraints/cpu.txt pytest hypothesis
"$venv/bin/python" -m pytest tests/core -p no:cacheprovider
